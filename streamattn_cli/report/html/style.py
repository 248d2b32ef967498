"""The style sheet of the page: light, dark, narrow, wide and on paper. Every text has a contrast of 4.5 or more."""

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#57606a;--paper:#fff;--card:#f6f8fa;--rule:#d0d7de;--mark:#0757b8;
--soft:#bcd7f5;--warn:#9a3412;--s0:#e4eef9;--s1:#c3dbf3;--s2:#98c1ea;--s3:#669fdb;--s4:#3a7cc4;--s5:#1d5a9e;--s6:#0b3566}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--dim:#a3adb8;--paper:#0d1117;--card:#161b22;--rule:#30363d;
--mark:#79b8ff;--soft:#1f4a7a;--warn:#ffb38a;--s0:#16263a;--s1:#1c3a5c;--s2:#24527f;--s3:#3a72a8;--s4:#5f98cc;--s5:#93c0e8;
--s6:#d3e8fb}}
@media print{:root{--ink:#000;--dim:#333;--paper:#fff;--card:#fff;--rule:#999;--mark:#0757b8;--soft:#bcd7f5;--warn:#7c2d12;
--s0:#e4eef9;--s1:#c3dbf3;--s2:#98c1ea;--s3:#669fdb;--s4:#3a7cc4;--s5:#1d5a9e;--s6:#0b3566}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}figure,table,tr{break-inside:avoid}main{max-width:none;padding:0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.35rem;margin:0 0 .25rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
p{margin:.5rem 0;max-width:46rem}.dim{color:var(--dim)}.warn{color:var(--warn)}
.key{display:grid;grid-template-columns:repeat(auto-fit,minmax(11.5rem,1fr));gap:.75rem;margin:1.2rem 0;padding:0}
.key div{background:var(--card);border:1px solid var(--rule);border-radius:6px;padding:.7rem .9rem}
.key dt{color:var(--dim);font-size:.875rem}.key dd{margin:0;font-size:1.5rem;font-weight:600;line-height:1.25}
.key dd{overflow-wrap:normal}.key dd b{white-space:nowrap;font-weight:600}.key dd small{display:block;font-size:.875rem;font-weight:400;color:var(--dim)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1rem;align-items:start}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:6px;padding:.75rem}
figcaption{font-size:.9375rem;font-weight:600;margin-bottom:.4rem}
figcaption span{display:block;font-weight:400;color:var(--dim);font-size:.875rem}
svg{display:block;width:100%;max-width:38rem;height:auto;font:12px system-ui,-apple-system,"Segoe UI",sans-serif}
@media (max-width:30rem){svg{font-size:14px}}
.tick,.name,.note{fill:var(--dim)}.grid{stroke:var(--rule);stroke-width:1}.line{fill:none;stroke:var(--mark);stroke-width:2}
.under{fill:var(--soft);opacity:.5}.mark{stroke:var(--dim);stroke-width:1.5;stroke-dasharray:5 4}
.span{stroke:var(--mark);stroke-width:2;opacity:.55}.dot{fill:var(--mark)}.front{fill:none;stroke:var(--mark);stroke-width:2}
.best{fill:var(--mark)}.other{fill:var(--dim)}.letter{fill:var(--paper);font-weight:700}.none{fill:none;stroke:var(--rule)}
.s0{fill:var(--s0)}.s1{fill:var(--s1)}.s2{fill:var(--s2)}.s3{fill:var(--s3)}.s4{fill:var(--s4)}.s5{fill:var(--s5)}
.s6{fill:var(--s6)}
.pair,.scroll,main>table{margin:1rem 0}.scroll{overflow-x:auto;background:linear-gradient(90deg,var(--paper) 30%,transparent) left/2.5rem 100% no-repeat local,
linear-gradient(270deg,var(--paper) 30%,transparent) right/2.5rem 100% no-repeat local,linear-gradient(90deg,var(--rule),transparent) left/.8rem 100% no-repeat scroll,linear-gradient(270deg,var(--rule),transparent) right/.8rem 100% no-repeat scroll}
table{width:100%;border-collapse:collapse;font-size:.9375rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.4rem 0}
th,td{padding:.3rem .9rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
thead th{color:var(--dim);font-weight:600;white-space:nowrap}tbody th{font-weight:400;color:var(--dim);white-space:nowrap}
td.n,th.n{text-align:right;white-space:nowrap}td.long{overflow-wrap:anywhere}tr.best td,tr.best th{font-weight:600;color:var(--ink)}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--mark)}
summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--mark);outline-offset:2px}
@media print{.scroll{overflow:visible}table{font-size:.75rem}th,td{padding-right:.5rem}thead th,td.n,th.n{white-space:normal}}
@media (max-width:30rem){.key{grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr))}.key dd{font-size:1.125rem}}
code{font:.875em ui-monospace,monospace;overflow-wrap:anywhere}code span{display:inline-block;max-width:100%}li{margin:.3rem 0;max-width:46rem}
"""
