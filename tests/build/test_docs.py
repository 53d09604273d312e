"""The documentation's links, commands and examples work; its tables agree with the code and the results."""

from __future__ import annotations

import ast
import glob
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import run_program

from benches import deployed, report
from benches.accuracy import table as accuracies_table
from wae import cli
from wae.data import photos
from wae_kernels import backends

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(page for folder in (ROOT, ROOT / "docs") for page in folder.glob("*.md")),
        *(page for name in ("python", "tools") for page in (ROOT / name).rglob("*.md")),
    ]
)
READ = re.compile(r"""(?:environ(?:\.get\(|\[)|getenv\(|switch\()\s*["'](\w+)["']""")
RENDERED = ("docs", "python", "tools")  # by docs/conf.py, and the pages of the root
SOURCES = ("wae_kernels", "python", "csrc", "tools", "benches", "tests/support/cases.py", "setup.py")
OTHERS = {
    *("RANK", "LOCAL_RANK"),
    "RAY_USAGE_STATS_ENABLED",
    *("XDG_CACHE_HOME", "CUDA_PATH", "PATH", "TORCHINDUCTOR_CACHE_DIR"),
}
"""Variables that belong to torchrun, the system or a library, with their usual meaning."""


def table() -> str:
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    return text.partition("## Environment variables")[2]


def read_in_sources() -> set[str]:
    found: set[str] = set()
    for place in SOURCES:
        path = ROOT / place
        files = (
            [path]
            if path.is_file()
            else [f for f in path.rglob("*") if f.suffix in (".py", ".cpp", ".h", ".cu")]
        )
        for file in files:
            found.update(READ.findall(file.read_text(encoding="utf-8")))
    return found


def documented_variables() -> set[str]:
    first_column = " ".join(re.findall(r"^\| (`.*?) \|", table(), re.MULTILINE))
    return set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", first_column))


def test_every_variable_of_the_makefile_is_explained() -> None:
    found = re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"PYTHON", "FUZZ_SECONDS"} <= set(found) <= documented_variables()


def test_make_help_lists_every_target() -> None:
    targets = re.findall(r"^\.PHONY: (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(targets) == set(re.findall(r"^  make (\S+) ", listed, re.MULTILINE))


def test_every_environment_variable_is_explained() -> None:
    documented = documented_variables()
    found = read_in_sources()
    assert {
        "WAE_BACKEND",
        "WAE_NO_NATIVE",
        "WAE_TRITON_TILES",
        "FORCE_CUDA",
    } <= found  # the search finds them
    assert found - OTHERS <= documented
    assert {name for name in documented if name.startswith("WAE_")} <= found


def test_a_seed_that_is_not_a_number_is_refused() -> None:
    done = run_program("import cases", check=False, WAE_TEST_SEED="today")
    assert "UsageError: WAE_TEST_SEED must be a whole number, got 'today'" in done.stderr


@pytest.mark.parametrize("name", ["auto", "cpu", *(b.name for b in backends.available())])
def test_every_backend_is_explained(name: str) -> None:
    (line,) = re.findall(r"^\| `WAE_BACKEND` .*$", table(), re.MULTILINE)
    assert f"`{name}`" in line


# -------------------------------------------------------------------------------------------------- links


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))


def test_the_search_finds_links() -> None:
    assert "docs/ARCHITECTURE.md" in links(ROOT / "CONTRIBUTING.md")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


WRITTEN = re.compile(r"<!-- [^\n]* from here -->.*?<!-- to here -->", re.DOTALL)
CODE = re.compile(r"```.*?```|(?<=\n\n)(?: {4}[^\n]*\n|\n(?= {4}))+", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_line_has_more_than_120_columns(page: Path) -> None:
    """Except in tables, in code, and in what programs write. A link that is too long has its own line."""
    text = CODE.sub("", WRITTEN.sub("", page.read_text(encoding="utf-8")))
    for line in text.splitlines():
        if not line.lstrip().startswith(("|", "<!--")):
            assert len(line) <= 120 or len(line.split()) == 1, line


def test_every_test_that_is_named_exists() -> None:
    texts = {named(page): page.read_text(encoding="utf-8") for page in PAGES}
    tests = [(page, *test) for page in texts for test in re.findall(r"`([\w/]+\.py)::(\w+)`", texts[page])]
    assert tests
    for page, path, name in tests:
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(encoding="utf-8"), (page, path, name)


# ----------------------------------------------------------------------------------------------- commands


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command in the page's code blocks, without variables, comment and redirection."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    programs = "wae|make|python|torchrun|pip|tools/[\\w.]+"
    for line in re.findall(rf"^ {{4,}}(?:[A-Z_]+=\S+ )*((?:{programs}) .*)$", text, re.MULTILINE):
        words = shlex.split(line, comments=True)
        yield words[: words.index(">")] if ">" in words else words


ALL_COMMANDS = [
    pytest.param(words, id=f"{named(page)}: {' '.join(words)}") for page in PAGES for words in commands(page)
]


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_every_command_exists(words: list[str]) -> None:
    """A ``wae`` command with all its options, a ``pip`` command with all its extras."""
    program, *arguments = words
    if "wae.cli" in arguments:  # torchrun ... -m wae.cli
        program, arguments = "wae", arguments[arguments.index("wae.cli") + 1 :]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert arguments[0] in targets
    elif program == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1])
    elif program == "python" and arguments[0].endswith(".py"):
        assert (ROOT / arguments[0]).is_file()
    elif program == "wae":
        assert accepted(arguments)
    elif program == "pip":
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        extras = re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*)\]", arguments[-1])))
        assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
    elif "/" in program:
        assert os.access(ROOT / program, os.X_OK)


@pytest.mark.slow
def test_programs_that_write_tables_find_their_modules() -> None:
    pytest.importorskip("triton")
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.findall(r"^ {4}PYTHONPATH=(\S+) python (\S+)/(\w+)\.py --write", text, re.MULTILINE)
    assert {module for *_, module in found} == {"cuda_gate", "triton_counts"}
    for path, folder, module in found:  # the folder is where Python looks first if the program is run
        program = f"import sys; sys.path[0] = {folder!r}; import {module}"
        environment = {**os.environ, "PYTHONPATH": path}
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)


def accepted(arguments: list[str]) -> bool:
    try:
        cli.build_parser().parse_args(arguments)
    except SystemExit as end:  # --help and its like exit too, with 0
        return not end.code
    return True


def test_the_search_finds_commands() -> None:
    found = [" ".join(param.values[0][:2]) for param in ALL_COMMANDS]
    assert {"make run", "wae train", "wae bench", "python -m", "torchrun --nproc-per-node"} <= set(found)
    assert {"pip install", "tools/try_wheel.sh dist/*.whl"} <= set(found)


SHORT = (
    "wae info",
    "wae info wae_resnet50",
    "wae selftest --only 17 --json",
    "wae --print-completion bash",
    "wae demo holiday.jpg -o out --no-timing",
    "wae encode holiday.jpg -o holiday.safetensors",
    "wae decode holiday.safetensors -o back.png",
    "wae predict shop/*.jpg --invert",
)
"""Commands of the pages that take only a moment, in the order in which they run.

The others need a GPU, a data set, a checkpoint or a download, or run for minutes. The tests of each command
run it on smaller inputs."""


@pytest.mark.slow
def test_short_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shop").mkdir()
    for name in ("holiday.jpg", "shop/1.jpg", "shop/2.jpg"):
        shutil.copy(photos.photo_path("chelsea"), name)
    documented = [param.values[0] for param in ALL_COMMANDS]
    for command in map(str.split, SHORT):
        assert command in documented
        words = [found for word in command[1:] for found in (glob.glob(word) or [word])]
        try:
            status = cli.main(words)
        except SystemExit as end:
            status = end.code or 0
        assert status == 0, command


# ----------------------------------------------------------------------------------------------- examples

CHANGED = {
    '"path/to/wae-kernels"': repr(str(ROOT)),
    "stage1.schedule(500)": "stage1.schedule(5)",
    "batch=4)\nscores": 'batch=4, engine="eager")\nscores',
}
"""Changes with which the examples run here within seconds: fewer steps, no search for the fastest engine."""

NOT_RUN = {
    "docs/accelerate.md": "needs a trained network and its images",
    "docs/caffe.md": "needs Caffe's files",
    "docs/triton.md": "needs a GPU",
    "tools/ptx_machine/README.md": "compiles a kernel of the reader's",
}


def examples(page: Path) -> str:
    """All Python blocks of the page, because later ones continue earlier ones."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))


WITH_EXAMPLES = [page for page in PAGES if examples(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in WITH_EXAMPLES if named(p) not in NOT_RUN], ids=named)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    code = examples(page)
    for written, run in CHANGED.items():
        code = code.replace(written, run)
    exec(compile(code, str(page), "exec"), {})


@pytest.mark.parametrize("name", NOT_RUN)
def test_imports_of_the_other_examples_work(name: str) -> None:
    body = ast.parse(examples(ROOT / name)).body
    imports = [statement for statement in body if isinstance(statement, (ast.Import, ast.ImportFrom))]
    assert imports
    exec(compile(ast.Module(imports, []), name, "exec"), {})


def test_the_rendered_documentation_has_every_page() -> None:
    """``make docs`` fails if a page that it renders is in no menu."""
    folder = ROOT / "docs"
    left_out = [ROOT / name for name in runpy.run_path(str(folder / "conf.py"))["exclude_patterns"]]
    menu = (folder / "index.md").read_text(encoding="utf-8").splitlines()
    for page in (*ROOT.glob("*.md"), *(page for name in RENDERED for page in (ROOT / name).rglob("*.md"))):
        if page.name != "index.md" and not any(page.is_relative_to(path) for path in left_out):
            assert Path(os.path.relpath(page, folder)).with_suffix("").as_posix() in menu


FASHION = ("fashion-mnist", "28 x 28", "14 x 14")
SMALL_VGG = ("imagenette-small_vgg-64", "64 x 64", "32 x 32")
RESNET18 = ("imagenette-resnet18-128", "128 x 128", "64 x 64")
CAMVID = ("camvid-enet-180x240", "full resolution", "half, bilinear")
LARGER = ("camvid-mobilenet_deconv_compensated-180x240", "full resolution", "half, bilinear")
LARGER_DECONV = ("camvid-mobilenet_deconv-180x240", "full resolution", "half, bilinear")
LARGER_PSPNET = ("camvid-pspnet_resnet18-180x240", "full resolution", "half, bilinear")


def accuracies(folder: str, network: str, reestimated: bool = False) -> dict[int, float]:
    """The accuracies of a network in docs/results, by seed; also those with re-estimated statistics."""
    kept = [json.loads(path.read_bytes()) for path in (ROOT / "docs/results" / folder).glob("*.json")]
    found = {result["seed"]: result for result in kept if result["network"] == network}
    return {seed: (of["remeasured"] if reestimated else of)["accuracy"] for seed, of in found.items()}


def recovered(folder: str, full: str, half: str, network: str, reestimated: bool = False) -> list[int]:
    """Per cent of the accuracy lost at half resolution: by the means of the seeds, then for each seed."""
    found = [accuracies(folder, name, reestimated) for name in (full, half, network)]
    columns = [[of[seed] for seed in sorted(found[-1])] for of in found]
    means = [[statistics.fmean(column)] for column in columns]
    rows = [*zip(*means, strict=True), *zip(*columns, strict=True)]
    return [round(100 * (mine - lost) / (whole - lost)) for whole, lost, mine in rows]


@pytest.mark.parametrize(
    ("claim", "network", "sentence"),
    [
        (SMALL_VGG, "half, equal cost, fine-tuned", "it recovers {} % (each seed: {}, {}, {}), but takes"),
        (SMALL_VGG, "40 x 40, fine-tuned", "With WAE's time (40 x 40) it recovers {} % ({}, {}, {}),"),
        (SMALL_VGG, "WAE, fine-tuned", "and WAE {} %. From scratch"),
        (SMALL_VGG, "half, equal cost", "From scratch, 50 x 50 recovers {} %."),
        (SMALL_VGG, "Wavelet+CNN", "in its place recovers {} % on the photos"),
        (FASHION, "Wavelet+CNN", "on the photos and {} % on Fashion-MNIST"),
        (SMALL_VGG, "Decomposition+CNN", "without the reconstruction, {} and"),
        (FASHION, "Decomposition+CNN", "and {} %. - Around ENet"),
    ],
)
def test_the_shares_in_the_readme_are_those_of_the_results(
    claim: tuple[str, str, str], network: str, sentence: str
) -> None:
    shares = recovered(*claim, network)
    assert sentence.format(*shares) in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_the_ratios_in_the_first_paragraphs_of_the_readme_are_those_of_its_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    eager, engine = zip(*re.findall(r"\| ([\d.]+)x \| ([\d.]+)x \|", readme), strict=True)
    for ratios in (eager, engine):
        ends = sorted(ratios, key=float)
        assert f"{ends[0]} to {ends[-1]} times as fast" in readme


def test_the_ratios_in_int8_in_the_readme_are_those_of_the_results() -> None:
    measured = deployed.read(report.ROOT / "benches" / "results" / deployed.FOLDER)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())

    def ratios(network: str, machine: str, *batches: int) -> str:
        """The lowest and the highest of the ratios, or one if they are equal."""
        found = [
            row.ratio
            for comparison, about in measured
            if comparison.network == network and comparison.images in batches
            if deployed.machine(about).startswith(machine)
            for row in comparison.rows
            if row.precision == "int8"
        ]
        return " to ".join(dict.fromkeys(f"{ratio:.1f}" for ratio in (min(found), max(found))))

    (one, eight), (deep, wide) = ([ratios(n, "AMD EPYC, ", b) for b in (1, 8)] for n in ("resnet50", "vgg16"))
    assert f"WAE-ResNet50 is {one} times as fast as ResNet50 for one image and {eight} times for" in readme
    assert f"WAE-VGG16 is {deep} and {wide} times as fast as VGG16" in readme
    amx = [ratios(network, "Intel(R) Xeon(R) Processor with AMX", 1, 8) for network in ("resnet50", "vgg16")]
    assert "AMX it is {} times for ResNet50 and {} times for VGG16".format(*amx) in readme


def test_the_accuracies_in_the_readme_are_those_of_the_results() -> None:
    lines = accuracies_table(ROOT / "docs" / "results")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n".join([report.ACCURACIES, "", *lines, "", report.END]) in readme
    last = sorted(int(share) for line in lines for share in re.findall(r"\((-?\d+)%\) \|$", line))
    assert f"Distilled from it, WAE recovers {last[0]} to {last[-1]} %." in readme
    assert "| Imagenette, 64 x 64 | a small VGG | 3 | 83.1 % |" in lines[4]
    for line, claim in ((4, SMALL_VGG), (6, RESNET18), (8, LARGER_PSPNET)):
        share = recovered(*claim, "WAE", reestimated=claim is LARGER_PSPNET)[0]
        assert f"({share}%)" in lines[line]


@pytest.mark.parametrize(
    ("network", "claim"),
    [
        ("ENet at 180 x 240", CAMVID),
        ("PSPNet", LARGER_PSPNET),
        ("mobilenet_deconv at 180 x 240", LARGER_DECONV),
        ("PSPNet at 90 x 120", ("camvid-pspnet_resnet18-90x120", *LARGER_PSPNET[1:])),
        ("mobilenet_deconv at 90 x 120", ("camvid-mobilenet_deconv-90x120", *LARGER_DECONV[1:])),
        ("ENet at 90 x 120", ("camvid-enet-90x120", *CAMVID[1:])),
        ("compensated at 180 x 240", LARGER),
        ("compensated at 90 x 120", ("camvid-mobilenet_deconv_compensated-90x120", *LARGER[1:])),
    ],
)
def test_the_table_of_re_estimated_statistics_is_that_of_the_results(
    network: str, claim: tuple[str, str, str]
) -> None:
    page = (ROOT / "docs/road-scenes.md").read_text(encoding="utf-8")
    tuned = () if network == "PSPNet" else ("half, bilinear, fine-tuned", "WAE, fine-tuned")
    for name in ("full resolution", "half, bilinear", "WAE", *tuned):
        means = [statistics.fmean(accuracies(claim[0], name, again).values()) for again in (False, True)]
        cells = [f"{100 * mean:.2f} %" for mean in means]
        if name not in claim:
            cells += [f"{recovered(*claim, name, again)[0]} %" for again in (False, True)]
        row = rf"\| {network}, {name}(, (one|three) seeds?)? \| {' . '.join(map(re.escape, cells))} [ |]*\|\n"
        assert re.search(row, page), (name, cells)


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "docs/results").glob("camvid-*")), ids=lambda path: path.name
)
def test_the_rows_of_road_scenes_are_those_of_the_results(folder: Path) -> None:
    """With re-estimated statistics, where the results have them; on `val` as trained."""
    page = (ROOT / "docs/road-scenes.md").read_text(encoding="utf-8").replace("**", "")
    results = [json.loads(path.read_bytes()) for path in folder.glob("*.json")]
    measure = "remeasured" if all(result.get("remeasured") for result in results) else "measured"
    for name in {result["network"] for result in results}:
        of = [result for result in results if result["network"] == name]
        mean, *others = (
            statistics.fmean(100 * result[measure][key] for result in of)
            for key in ("mean_iou", "pixels", "mean_class")
        )
        others.append(statistics.fmean(100 * result["epochs"][-1] for result in of))
        cells = f"{mean:.2f} % |"
        if len(of) > 1:
            cells += f" {statistics.stdev(100 * result[measure]['mean_iou'] for result in of):.2f} |"
        row = rf"\n\| {name} \| {re.escape(cells)}( [\d., ]+ \|)?"
        assert re.search(row + "".join(rf" {other:.1f} % \|" for other in others), page), (name, cells)


@pytest.mark.parametrize(
    ("page", "claim"),
    [
        ("fashion-mnist.md", FASHION),
        ("fashion-mnist.md", ("fashion-mnist-4-times", *FASHION[1:])),
        ("photos.md", SMALL_VGG),
        ("photos.md", ("imagenette-small_vgg-64-4-times", *SMALL_VGG[1:])),
    ],
    ids=["clothes", "clothes, longer", "photos", "photos, longer"],
)
def test_the_rows_of_several_seeds_are_those_of_the_results(page: str, claim: tuple[str, str, str]) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("**", "")
    kept = (ROOT / "docs/results" / claim[0]).glob("*-seed1.json")
    names = {json.loads(path.read_bytes())["network"] for path in kept}
    assert {*claim[1:], "WAE"} < names
    for name in names:
        found = accuracies(claim[0], name)
        share, *shares = recovered(*claim, name)
        spread = 100 * statistics.stdev(found.values())
        row = f"| {name} | {100 * statistics.fmean(found.values()):.2f} % | {spread:.2f} |"
        row += " |" if name in claim else f" {share} % ({', '.join(map(str, shares))}) |"
        if page == "photos.md":
            row += f" {', '.join(f'{100 * found[seed]:.2f}' for seed in sorted(found))} |"
        assert f"\n{row}" in text, row


def test_the_rows_of_resnet18_are_those_of_the_results() -> None:
    page = (ROOT / "docs/photos.md").read_text(encoding="utf-8").replace("**", "")
    for path in (ROOT / "docs/results" / RESNET18[0]).glob("*.json"):
        result = json.loads(path.read_bytes())
        name = result["network"]
        share = "" if name in RESNET18 else f" {recovered(*RESNET18, name)[0]} %"
        cost = f"{result['multiply_adds'] / 1e6:.1f} M"
        assert f"\n| {name} | {100 * result['accuracy']:.2f} % |{share} | {cost} |\n" in page
        assert f"{result['seconds']:,.0f} s ({name})" in page


def test_the_accuracies_of_the_acceleration_are_those_it_recorded() -> None:
    path = ROOT / "docs/results/accelerate/imagenette-small_vgg-64/accelerate.json"
    found = json.loads(path.read_bytes())["found"]
    page = (ROOT / "docs/accelerate.md").read_text(encoding="utf-8")
    name = "trial: size 64, factor 4, mimic"
    for row, accuracy in (
        ("the original, on the 3,925 test photos | {} |", found["original"]["accuracy"]),
        ("accelerated, on the same | **{}** |", found["deployed"]["accelerated"]["accuracy"]),
        ("AdamW, distilled | {} |", found[f"{name} 1"]),
        ("SGD, distilled | {} |", found[f"{name} 1, sgd"]),
        ("SGD, without distillation | {} |", found[f"{name} 0, sgd"]),
        ("SGD, distilled with mirror images: chosen | {} |", found[f"{name} 1, mirrored, sgd"]),
    ):
        assert row.format(f"{100 * accuracy:.2f} %") in page


def kept(name: str) -> dict[str, Any]:
    """A file in benches/results."""
    found: dict[str, Any] = json.loads((ROOT / "benches" / "results" / f"{name}.json").read_bytes())
    return found


ENGINES = ("torch.compile", "Winograd", "ONNX Runtime", "OpenVINO")


def sentences() -> Iterator[tuple[str, str]]:
    """Pages, and what they must say by the kept results, without line breaks."""
    for name in ("onnxruntime-float32", "openvino-float32", "compile-float32", "openvino-int8"):
        memory = kept(f"load/wae_vgg16-{name}-8")["megabytes"]
        yield "deploy.md", f" | {memory['private']} MB | {memory['peak']} MB |"
    loaded = kept("load/wae_resnet50-onnxruntime-int8-1")
    peak, files = loaded["megabytes"]["peak"], loaded["megabytes"]["files"]
    yield "deploy.md", f"one image: {loaded['seconds']:.2f} s from the call of `load_deployed`"
    yield "deploy.md", f"at most {peak} MB beyond what importing torch takes, for {files} MB of files"
    measured = {
        row["network"]: row
        for row in kept("amd-epyc-cpu-avx512-2-threads")["benchmarks"]
        if row["table"] == "memory"
    }
    for network, row in measured.items():
        peaks = (row["megabytes"][f"WAE-{network}, deployed | {engine}"] for engine in ENGINES)
        yield "deploy.md", f"| WAE-{network} | {' | '.join(f'{peak:.0f}' for peak in peaks)} |"
    clothes = kept("precision/fashion-mnist-openvino")
    yield "deploy.md", f"in float32, and {clothes['int8']:.2%}".replace("%", " %")
    encoder = kept("precision/encoder-int8")
    photos = [photo["int8 against float32"] for photo in encoder["decoded photos"].values()]
    yield "network.md", f"against those of float32 is {min(photos):.1f} to {max(photos):.1f} dB"
    yield "network.md", f"{statistics.fmean(photos):.1f} on average"
    accuracies = (f"{100 * encoder['Fashion-MNIST'][precision]:.2f} %" for precision in ("float32", "int8"))
    yield "network.md", "accuracy of {} in float32 and {} with".format(*accuracies)
    for name, row in (("ray", "Ray"), ("plain loop", "the plain loop")):
        loop = kept("scale/ray-overhead")[name]
        yield "scale.md", f"| {row} | {loop['images_per_second']:.1f} | {loop['start']:.2g} s |"
    included, trained = (kept(f"autoencoder/imagenette-{name}") for name in ("included", "trained"))
    theirs = trained["training's linear"]
    yield "photos.md", f"transform of the training photos | {theirs:.2f} dB"
    yield "photos.md", f"linear transform of each photo | {trained['own linear']:.2f} dB"
    yield "photos.md", f"other photos | {included['psnr']:.2f} dB | {included['energy']:.1f} %"
    yield "photos.md", f"24,000 steps | **{trained['psnr']:.2f} dB** | {trained['energy']:.1f} %"
    yield "photos.md", f"better than it on {100 * trained['share']:.1f} % of the photos"
    yield "photos.md", f"and better on {100 * included['share']:.1f} %"
    (calls,) = kept("calls/amd-epyc-cpu-avx512-1-threads.short")["benchmarks"]
    took = {side: 1e6 * timing["median"] for side, timing in calls["timings"].items()}
    empty, bare = "an empty op of the same schema", "an empty op, no mode entered"
    for row, side, nothing in (
        ("`Encoder`, no gradients", "module", empty),
        (
            "`Encoder`, in `torch.no_grad` throughout",
            "module, no mode entered",
            bare,
        ),
        ("`Encoder`, with gradients", "module, with gradients", empty),
        ("`Encoder`, inside autocast (no gradients)", "module, autocast", "an empty op, autocast"),
    ):
        yield "kernels.md", f"| {row} | {took[side] - took[nothing]:.1f} |"


def test_pages_have_the_figures_of_the_kept_results() -> None:
    for page, sentence in sentences():
        text = " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())
        assert sentence in text, (page, sentence)
