"""Which arrays of a file are q, k and v, by the names that producers give them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from streamattn_cli.errors import InputMalformed, InputMissing

# The last component of a name, in small letters: hooks of TransformerLens, KV caches of transformers and MLX, variables of
# transformers' modules. A number behind it (q_3, keys3) or before it (layer3_q) is that of a layer.
SYNONYMS = {
    "q": ("q", "query", "queries", "query_states", "query_layer", "q_proj", "xq", "hook_rot_q", "hook_q"),
    "k": ("k", "key", "keys", "key_states", "key_layer", "k_proj", "k_cache", "key_cache", "xk", "hook_rot_k",
          "hook_k"),
    "v": ("v", "value", "values", "value_states", "value_layer", "v_proj", "v_cache", "value_cache", "xv", "hook_v"),
}  # fmt: skip
PAIRS = {"k": "0", "v": "1"}
FUSED = ("qkv", "c_attn", "qkv_proj", "wqkv", "query_key_value", "in_proj")  # last components, in small letters
NAMES_SHOWN = 40


def find_parts(path: str, names: Iterable[str], parts: tuple[str, ...], group: str | None) -> dict[str, str]:
    """The names of the arrays 'q', 'k', 'v' asked for: GROUP.q if a group is given, else plain q, else the only one that
    ends in it. Words of SYNONYMS stand for the letters.

    Raises InputMissing where there is none and InputMalformed where there are several.
    """
    names = sorted(names)
    listed = ", ".join(names[:NAMES_SHOWN]) or "none at all"
    found = {}
    for part in parts:
        fitting = _fitting(names, part, group)
        if not fitting:
            wanted = f"{group}.{part}" if group else f"{part} or *.{part}"
            others = advice([name for name in names if _is(name, part)]) or fused_advice(path, names)
            raise InputMissing(f"{path}: no tensor {wanted}; there are: {listed}{others}")
        if len(fitting) > 1:
            groups = [_group(name) for name in fitting]
            layers = [*layer_groups(names, parts)]
            layered = f"; attend, compare and plan know --layer {layers[0]} and --layer all" if layers else ""
            raise InputMalformed(
                f"{path}: {len(fitting)} tensors end in .{part} ({', '.join(fitting[:8])}); "
                f"choose with --group {groups[0]} or another prefix, or with --{part} {path}:NAME{layered}"
            )
        found[part] = fitting[0]
    return found


def check_there(path: str, wanted: Iterable[str], there: Collection[str], kind: str = "array") -> None:
    """Refuse (InputMissing, which lists what is there) names that a file does not have."""
    for name in wanted:
        if name not in there:
            listed = ", ".join(sorted(there)[:NAMES_SHOWN]) or "none at all"
            raise InputMissing(f"{path}: no {kind} {name}; there are: {listed}")


def layer_groups(names: Iterable[str], parts: tuple[str, ...]) -> dict[int, str]:
    """Number of a layer -> what --group chooses it by, in the order of the numbers: groups with a number in their name that
    have all of the parts. Where several have the same number, the first."""
    names = sorted(names)
    found: dict[int, str] = {}
    wanted = [{_group(name).strip("/") for name in names if _is(name, part)} for part in parts]
    for group in sorted(set.intersection(*wanted)) if wanted else ():
        numbers = re.findall(r"\d+", group)
        if numbers:
            found.setdefault(int(numbers[-1]), group)
    return dict(sorted(found.items()))


def _fitting(names: list[str], part: str, group: str | None) -> list[str]:
    """Names that may be meant; the first kind of which there is any."""
    if group is not None:
        prefix = group.strip("/.")
        exact = [name for name in names if name in (f"{group}.{part}", f"{prefix}/{part}", f"{prefix}.{part}")]
        alike = prefix.replace("/", ".")  # layers.3 and layers/3 are one, unless a file has both
        return exact or [
            name for name in names if _group(name).strip("/").replace("/", ".") == alike and _is(name, part)
        ]
    if part in names:
        return [part]
    plain = [name for name in names if name.endswith((f".{part}", f"/{part}"))]
    return plain or [name for name in names if _is(name, part)]


def _is_of_pair(name: str, part: str) -> bool:
    """Whether it is one of the two of a layer, N.0 or N.1, of a prompt cache of MLX or a list of pairs."""
    return part in PAIRS and re.search(rf"(^|[./])\d+[./]{PAIRS[part]}$", name) is not None


def advice(names: list[str]) -> str:
    """Which --group to give for one of these tensors, for the end of a message; nothing where there is none."""
    groups = [group for group in dict.fromkeys(_group(name).strip("/") for name in names) if group]
    others = f" (or {', '.join(groups[1:4])}{', ...' if len(groups) > 4 else ''})" if len(groups) > 1 else ""
    return f"; give --group {groups[0]}{others}" if groups else ""


def fused_advice(path: str, names: list[str]) -> str:
    """How to read arrays without names, or one that by its name holds q, k and v, for the end of a message."""
    if names and all(re.fullmatch(r"arr_\d+", name) for name in names):
        named = " ".join(f"--{part} {path}:{name}" for part, name in zip("qkv", names, strict=False))
        return f"; they were saved without names: if these are q, k and v, give {named}"
    fused = [name for name in names if re.split(r"[./]", name)[-1].lower() in FUSED]
    if not fused:
        return ""
    return f"; if the rows of {fused[0]} hold q, k and v side by side: {path}:{fused[0]} --record qkv --heads HEADS"


def _is(name: str, part: str) -> bool:
    """Whether the last component of a name is a word for the part, or the number of a layer behind one: a list of layers."""
    *before, last = re.split(r"[./]", name)
    listed = last.isdigit() and before[-1:] and before[-1].lower() in SYNONYMS[part]
    return bool(_word(last)[0] in SYNONYMS[part] or listed or _is_of_pair(name, part))


def _word(last: str) -> tuple[str, str]:
    """The word of a last component in small letters, and the number of a layer behind it, or what ends in one before it."""
    lower = last.lower()
    if behind := re.fullmatch(r"(.*[a-z])_?(\d+)", lower):
        return behind[1], behind[2]
    before = re.fullmatch(r"(.*\d)[_-](.+)", lower)
    return (before[2], last[: before.end(1)]) if before else (lower, "")


def _group(name: str) -> str:
    """What --group chooses it by: all but the last component, of which the layer's number stays; so of a list of layers."""
    *before, last = re.split(r"[./]", name)
    if last.isdigit() and before[-1:] and any(before[-1].lower() in words for words in SYNONYMS.values()):
        return ".".join([*before[:-1], last])
    word, number = _word(last)
    if number and any(word in words for words in SYNONYMS.values()):
        return ".".join([*before, number])
    return name[: len(name) - len(last) - 1]
