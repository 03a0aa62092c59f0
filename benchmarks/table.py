"""``python -m benchmarks.table [results.json ...]``: the results as Markdown.

Without files it takes all in ``benchmarks/results``. ``--write PAGE`` puts the tables between the
two marks of a Markdown page instead of printing them. ``--excerpt`` is the README's short table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from resobj_d2.command import CommandParser

RESULTS = Path(__file__).parent / "results"
FULL, SHORT = "python -m benchmarks.table", "python -m benchmarks.table --excerpt"
NOT_MEASURED = "not measured"
NO_RESULTS = "No results yet: `make bench` puts them here."

# Case and peer of each row of the excerpt.
EXCERPT = [
    ("M1 201600 x 50", "Detectron2"),
    ("M4 201600 x 1000", "Detectron2"),
    ("R1 2 x 201600 T=2", "eager, masked"),
    ("L1 403200 x 80", "fvcore jit"),
    ("L2 20000", "fvcore"),
    ("N1 10000 of 80 classes", "torchvision"),
    ("F1 800x1344 of 80 classes", "Detectron2"),
]

TITLES = {
    "P1": "pairwise IoU",
    "P2": "pairwise GIoU",
    "M1": "match anchors",
    "M2": "match, against compiled code",
    "M3": "decode and match again",
    "M4": "match, many boxes",
    "R1": "ResObj loss and gradient",
    "L1": "focal loss and gradient",
    "L2": "GIoU loss and gradient",
    "L3": "balanced L1 and gradient",
    "N1": "NMS by class",
    "N2": "NMS of proposals",
    "F1": "post-processing",
    "F2": "post-processing with objectness",
    "G": "small inputs",
    "T1": "training step",
    "T2": "inference",
}


def render(results: list[dict]) -> str:
    """Tables of all results: one per processor, with a column for each GPU, and one per GPU."""
    on_cpu = of_processors(results)
    on_gpu = [r for r in results if r["machine"]["device"] == "cuda"]
    parts = [cpu_section(result, on_gpu) for result in on_cpu]
    parts += [gpu_section(result) for result in on_gpu]
    return "\n\n".join(parts) or NO_RESULTS


def excerpt(results: list[dict]) -> str:
    """A few rows of the first processor's results, one thread."""
    on_cpu = of_processors(results)
    if not on_cpu:
        return NO_RESULTS
    rows = {}
    for row in on_cpu[0]["rows"]:
        if row["comparison"] and row["threads"] == 1:
            rows.setdefault((f"{row['id']} {row['size']}", row["peer"]), row)
    header = ["operator, size", "against", "time, ms", "faster by", "peak memory, MiB"]
    lines = []
    for row in (rows[key] for key in EXCERPT if key in rows):
        times = f"{milliseconds(row['peer_ms'])} → {milliseconds(row['ours_ms'])}"
        ratio = f"{row['comparison']['ratio']:.3g}x"
        memory = peak({**row, "peak_limit_mb": None})
        lines.append([f"{TITLES[row['id']]}, {size(row)}", row["peer"], times, ratio, memory])
    return f"{title_of(on_cpu[0]['machine'])}, one thread:\n\n{grid(header, lines)}"


def of_processors(results: list[dict]) -> list[dict]:
    """Those on CPUs by title, so that a processor's best instructions come before others."""
    on_cpu = [r for r in results if r["machine"]["device"] == "cpu"]
    return sorted(on_cpu, key=lambda r: title_of(r["machine"]))


def title_of(about: dict) -> str:
    return about.get("title", about["cpu"])


def cpu_section(result: dict, on_gpu: list[dict]) -> str:
    threads = result["settings"]["threads"]
    # Settings of the CPU's allocator mean nothing there.
    gpus = {
        gpu["machine"]["gpu"]: {key[:-1]: rows for key, rows in by_comparison(gpu["rows"]).items()}
        for gpu in on_gpu
    }
    header = ["case", "size", "against", "theirs, ms", "ours, ms"]
    header += [f"{t} thread{'s' if t > 1 else ''}" for t in threads]
    header += ["target", "peak MiB, theirs → ours", "memory-bound share"]
    header += list(gpus) or ["GPU"]
    lines = []
    for key, rows in by_comparison(result["rows"]).items():
        first = rows[min(rows)]
        cells = [title(first), size(first), first["peer"] or "-"]
        cells += [milliseconds(first["peer_ms"]), milliseconds(first["ours_ms"])]
        cells += [ratio(rows[t]) if t in rows else "-" for t in threads]
        cells += [target(first), peak(first), percent(first["roofline"])]
        cells += [gpu_cell(rows_of_gpu.get(key[:-1])) for rows_of_gpu in gpus.values()]
        cells += [] if gpus else [NOT_MEASURED]
        lines.append(cells)
    parts = [f"### {title_of(result['machine'])}", facts(result), grid(header, lines)]
    return "\n\n".join(parts + metrics(result["rows"]))


def gpu_section(result: dict) -> str:
    header = ["case", "size", "against", "theirs, ms", "ours, ms", "ratio", "target"]
    header += ["cold L2", "as a graph, ms", "launches", "waits", "peak MiB", "memory-bound share"]
    lines = []
    for rows in by_comparison(result["rows"]).values():
        row = rows[min(rows)]
        cuda = row["cuda"]
        cells = [title(row), size(row), row["peer"] or "-"]
        cells += [milliseconds(row["peer_ms"]), milliseconds(row["ours_ms"]), ratio(row)]
        cells += [target(row), quotient(cuda.get("peer_cold_ms"), cuda.get("cold_ms"))]
        cells.append(graphs(cuda))
        for name in ("launches", "waits"):
            cells.append(f"{cuda.get('peer_' + name, '-')} → {cuda.get(name, '-')}")
        cells += [peak(row), percent(row["roofline"])]
        lines.append(cells)
    parts = [f"### {result['machine']['gpu']}", facts(result), grid(header, lines)]
    return "\n\n".join(parts + metrics(result["rows"]))


def by_comparison(rows: list[dict]) -> dict[tuple, dict[int, dict]]:
    """The rows of each comparison, by number of threads."""
    by_case: dict[tuple, dict[int, dict]] = {}
    for row in rows:
        key = (row["id"], row["size"], row["peer"], row["malloc"])
        by_case.setdefault(key, {})[row["threads"]] = row
    return by_case


def facts(result: dict) -> str:
    """One line that says what was measured where."""
    about = result["machine"]
    names = ("torch", "torchvision", "detectron2", "detectron2-cdo", "fvcore")
    versions = [f"{name} {about[name]}" for name in names if name in about]
    words = [f"{about['cores']} cores, {about['instructions']}", *versions]
    words.append(f"commit {about['git']}")
    for threads, rates in result["bandwidth"].items():
        gigabytes = ", ".join(f"{name} {rate / 1e9:.3g}" for name, rate in rates.items())
        where = "" if about["device"] == "cuda" else f" with {threads} threads"
        where = where.replace("1 threads", "1 thread")
        words.append(f"memory{where} in GB/s: {gigabytes}")
    return "; ".join(words) + "."


def metrics(rows: list[dict]) -> list[str]:
    lines = []
    for row in rows:
        for name, value in row["metrics"].items():
            limit = row["limits"].get(name)
            end = f" (at most {limit:g})" if limit is not None else ""
            count = f", {row['threads']} threads" if row["threads"] > 1 else ""
            lines.append(f"- {title(row)}, {row['size']}{count}: {name} {value:.3g}{end}")
    return ["\n".join(dict.fromkeys(lines))] if lines else []


def grid(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def title(row: dict) -> str:
    return f"{row['id']} {TITLES.get(row['id'], '')}".strip()


def size(row: dict) -> str:
    return row["size"] + (", default malloc" if row["malloc"] == "default" else "")


def milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def ratio(row: dict) -> str:
    """For example ``106x (98 to 112) pass``."""
    if row["error"]:
        return "FAILED"
    if row["missing"]:
        return "not installed"
    comparison = row["comparison"]
    if not comparison:
        return "-"
    text = f"{comparison['ratio']:.3g}x ({comparison['p10']:.3g} to {comparison['p90']:.3g})"
    noise = ", noisy" if comparison["noisy"] and row["verdict"] != "noisy" else ""
    return f"{text} {row['verdict']}".strip() + noise


def quotient(theirs: float | None, ours: float | None) -> str:
    return f"{theirs / ours:.3g}x" if theirs and ours else "-"


def target(row: dict) -> str:
    return f"{row['target']:g}x" if row["target"] is not None else "-"


def peak(row: dict) -> str:
    if row["peak_mb"] is None:
        return "-"
    limit = row["peak_limit_mb"]
    end = f" (at most {limit:.3g})" if limit is not None else ""
    theirs = f"{row['peer_peak_mb']:.3g} → " if row["peer_peak_mb"] is not None else ""
    return f"{theirs}{row['peak_mb']:.3g}{end}"


def percent(share: float | None) -> str:
    return f"{100 * share:.0f} %" if share is not None else "-"


def gpu_cell(rows: dict[int, dict] | None) -> str:
    return ratio(rows[min(rows)]) if rows else NOT_MEASURED


def one_line(row: dict) -> str:
    """A row as printed while the benchmark runs."""
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    words = [f"{row['id']} {size(row)}", row["peer"] or "alone", threads]
    if row["error"]:
        return " | ".join([*words, f"FAILED: {row['error']}"])
    if not row["missing"]:
        words.append(f"{milliseconds(row['peer_ms'])} → {milliseconds(row['ours_ms'])} ms")
    words += [ratio(row), f"target {target(row)}", f"peak {peak(row)}"]
    if cuda := row["cuda"]:
        words.append(f"cold L2 {quotient(cuda.get('peer_cold_ms'), cuda.get('cold_ms'))}")
        words.append(f"as a graph {graphs(cuda)} ms")
        words.append(f"waits {cuda.get('peer_waits', '-')} → {cuda.get('waits', '-')}")
    return " | ".join(words)


def graphs(cuda: dict) -> str:
    """Milliseconds as a CUDA graph, theirs and ours."""
    times = (cuda.get("peer_graph_ms"), cuda.get("graph_ms"))
    return " → ".join(milliseconds(ms) if ms else "no graph" for ms in times)


def replace_between_marks(page: str, tables: str, command: str) -> str:
    """The page with ``tables`` put between the marks that name the command.

    Raises:
        ValueError: the page does not contain each mark exactly once, in order.
    """
    begin, end = f"<!-- begin: {command} -->", f"<!-- end: {command} -->"
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end or begin in after or end in after:
        raise ValueError(f"the page must contain once, in this order: {begin} and {end}")
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def main(argv: list[str]) -> int:
    parser = CommandParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("files", type=Path, nargs="*", default=sorted(RESULTS.glob("*.json")))
    parser.add_argument("--excerpt", action="store_true")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    options = parser.parse_args(argv)
    results = [json.loads(path.read_text()) for path in options.files]
    tables = excerpt(results) if options.excerpt else render(results)
    if options.write:
        command = SHORT if options.excerpt else FULL
        page = replace_between_marks(options.write.read_text(), tables, command)
        options.write.write_text(page)
    else:
        print(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
