"""What a compiled program does, as its text says."""

import collections
import re


def operations(program, *args, name="sine"):
    """How often an operation runs in a jitted function, by the number of loops around it.

    The text is StableHLO. Functions are followed from their calls, so that one which is called
    twice counts twice.
    """
    lines = collections.defaultdict(list)
    function, braces, loops = "", 0, []
    for line in program.lower(*args).as_text().splitlines():
        if found := re.search(r"func\.func .*?@([\w.]+)\(", line):
            function, braces, loops = found[1], 0, []
        if "stablehlo.while" in line:
            loops.append(braces)
        braces += line.count("{") - line.count("}")
        lines[function].append((line, len(loops)))
        if loops and line.strip() == "}" and braces == loops[-1]:
            loops.pop()

    found = collections.Counter()

    def walk(function, depth):
        for line, inside in lines[function]:
            found[depth + inside] += len(re.findall(rf"stablehlo\.{name}\b", line))
            for callee in re.findall(r"call @([\w.]+)\(", line):
                walk(callee, depth + inside)

    walk("main", 0)
    return {depth: count for depth, count in found.items() if count}
