# Sourced by scripts/demo and scripts/test: makes .venv at the top of the repository with the pinned packages.
# set_up [EXTRA]: installs the package, with the extra's packages if one is named, unless that has been done for this
# very pyproject.toml and constraints.txt. Needs a package index the first time and nothing afterwards.

top="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$top/.venv"

set_up() {
    local extra="${1:-}" pins="$top/scripts/constraints.txt" wanted stamp
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "streamattn needs Python 3.11 or newer; python3 is $(python3 -V 2>&1)" >&2
        return 1
    fi
    # A venv knows its own path and its Python: a moved repository or another python3 needs a new one.
    wanted="$(python3 - "$venv" "$top/pyproject.toml" "$pins" <<'PYTHON'
import hashlib, sys
digest = hashlib.sha256(f"{sys.version} {sys.argv[1]}".encode())
for name in sys.argv[2:]:
    digest.update(open(name, "rb").read())
print(digest.hexdigest())
PYTHON
)" || return 1
    stamp="$venv/installed${extra:+-$extra}"
    if [ -x "$venv/bin/streamattn" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    echo "setting up $venv (once; needs a package index)" >&2
    if [ "$(cat "$venv/installed-for" 2>/dev/null)" != "$wanted" ]; then
        rm -rf "$venv"
        python3 -m venv "$venv" || return 1
        echo "$wanted" >"$venv/installed-for"
    fi
    local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$pins")
    # The build backend comes first and pinned; without isolation the build takes it from here.
    "${pip[@]}" setuptools || return 1
    "${pip[@]}" --no-build-isolation --editable "$top${extra:+[$extra]}" || return 1
    echo "$wanted" >"$stamp"
}
