"""The command line. `lossbook --help` lists the commands."""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import pandas as pd

    from lossbook.book.bench import Measurement
    from lossbook.book.runner import Result

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

audits = typer.Typer(no_args_is_help=True)
app.add_typer(audits, name="audit", help="What a file of your own says about the model that made it.")

EXECUTED = Path("build/notebooks")
SITE = Path("build/site")
RELEASE = Path("build/release")
GRADES = Path("build/grades")
COLLAPSE_AUDIT = Path("build/collapse-audit")
COMPARISON = Path("build/compare")

Executed = Annotated[Path, typer.Option(help="The folder of executed notebooks.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Notebooks at a time; if not given, one per core.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds for a whole notebook.")]


@app.callback()
def lossbook() -> None:
    """A book that runs: classification losses, calibration and the geometry of training."""


@app.command()
def run(
    notebooks: Annotated[
        list[Path] | None, typer.Argument(help="Notebooks or folders; if none, all of notebooks/.")
    ] = None,
    profile: Annotated[
        Literal["quick", "full"], typer.Option(help="How long, and on what, the notebooks train.")
    ] = "quick",
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME VALUE", help="A parameter of the notebooks; may be repeated."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    workers: Workers = None,
    timeout: Timeout = 600.0,
    out: Annotated[Path, typer.Option(help="Where the executed notebooks go.")] = EXECUTED,
    in_place: Annotated[bool, typer.Option("--in-place", help="Also write the results into the sources.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run again what has not changed.")] = False,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, whose workers execute the notebooks.")
    ] = None,
) -> None:
    """Execute notebooks; what has not changed is not run again."""
    results = _run(
        paths=notebooks or None,
        profile=profile,
        parameters=_parameters(parameter or []),
        device=device,
        workers=workers,
        timeout=timeout,
        out=out,
        in_place=in_place,
        force=force,
        cluster=cluster,
    )
    if not _show_results(results):
        raise typer.Exit(1)


@app.command()
def claims(executed: Executed = EXECUTED) -> None:
    """What the executed notebooks claim, against what the catalogue expects; status 1 if they differ."""
    if not _show_claims(executed):
        raise typer.Exit(1)


@app.command()
def papers(
    part: Annotated[str | None, typer.Option(help="Only the parts whose names contain this.")] = None,
    planned: Annotated[bool, typer.Option("--planned", help="Only papers without a notebook yet.")] = False,
    built: Annotated[bool, typer.Option("--built", help="Only papers with a notebook.")] = False,
) -> None:
    """The catalogue of papers."""
    import pandas as pd

    from lossbook.book.catalog import load_catalog

    entries = load_catalog().papers.values()
    chosen = [e for e in entries if (part or "") in e.part and (e.built or not built) and (not e.built or not planned)]
    rows = [(e.key, e.part, e.kind, e.arxiv, e.title, e.notebook or "planned") for e in chosen]
    _table(pd.DataFrame(rows, columns=["key", "part", "kind", "arXiv", "title", "notebook"]))
    typer.echo(f"{len(chosen)} papers, {sum(entry.built for entry in chosen)} with a notebook")


@app.command()
def data() -> None:
    """The datasets: what they hold, and whether they are here."""
    import pandas as pd

    from lossbook.data import data_root, describe, names

    facts = [describe(name) for name in names()]
    rows = [(fact["name"], fact["where"], fact["Size"], fact["Classes"], fact["Licence"]) for fact in facts]
    _table(pd.DataFrame(rows, columns=["name", "where", "size", "classes", "licence"]))
    typer.echo(f"Files are looked for in {data_root()}, and downloaded to it; LOSSBOOK_DATA names another folder")


@app.command()
def bench(
    groups: Annotated[
        list[str] | None,
        typer.Argument(
            help="import, overhead, sweep, losses, calibration, auc, head, z-loss, contrastive or book; all if none."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(help="How often each pair is timed.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    json: Annotated[
        Path | None,
        typer.Option(help="Also write the measurements to this file, after each of them: a stopped bench keeps those."),
    ] = None,
) -> None:
    """Measure speed as ratios to named peers in the same run; status 1 if a promise of the docs is broken."""
    from lossbook.book.bench import run_bench, write_json

    def say(sentence: str) -> None:
        typer.echo(f"lossbook: {sentence}", err=True)

    rows = run_bench(groups or None, repeats=repeats, device=device, say=say)
    measurements: list[Measurement] = []
    if json is not None:
        # A file that cannot be written is better known now than after the first minutes.
        write_json(measurements, json, device)
    for m in rows:
        typer.echo(f"{m.name}: {m.ours:.3g} s, {m.peer_name}: {m.peer:.3g} s", err=True)
        measurements.append(m)
        if json is not None:
            write_json(measurements, json, device)
    _show_measurements(measurements)
    broken = [m for m in measurements if not m.kept]
    for m in broken:
        say(f"{m.name} is {m.ratio:.2f} times as fast as {m.peer_name}; promised is {m.promise}")
    if broken:
        raise typer.Exit(1)


@app.command()
def site(executed: Executed = EXECUTED, out: Annotated[Path, typer.Option(help="The site's folder.")] = SITE) -> None:
    """Build the static site from the executed notebooks."""
    from lossbook.book.site import build_site

    typer.echo(f"Open {build_site(executed, out).resolve()}")


@app.command()
def book(workers: Workers = None, timeout: Timeout = 600.0) -> None:
    """The whole book: run every notebook, build the site, and hold the claims against the catalogue."""
    from lossbook.book.site import build_site

    results = _run(workers=workers, timeout=timeout, out=EXECUTED)
    typer.echo("building the site", err=True)
    page = build_site(EXECUTED, SITE)
    good = [_show_results(results), _show_claims(EXECUTED)]
    typer.echo(f"Open {page.resolve()}")
    if not all(good):
        raise typer.Exit(1)


@app.command("new-paper")
def new_paper(
    key: Annotated[str, typer.Argument(help="The paper's key; `lossbook papers --planned` lists them.")],
    notebook: Annotated[
        Path | None, typer.Option(help="Its notebook, below notebooks/; if none, the next number of the paper's part.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="losses.family.name, for a paper whose catalogue row names no functions.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")] = False,
) -> None:
    """Scaffold a planned paper: functions, tests, notebook and catalogue row, each saying what is to be written."""
    from lossbook.book.scaffold.plan import new_paper

    plan = new_paper(key, notebook=notebook, loss=loss, dry_run=dry_run)
    would = "would be " if dry_run else ""
    for path in plan.files:
        typer.echo(f"{path} {would}{'written' if path in plan.new else 'added to'}")
    for dotted in plan.present:
        typer.echo(f"lossbook has {dotted} already")
    typer.echo("\nWhat is left to do:")
    for number, step in enumerate(plan.steps, start=1):
        typer.echo(f"{number}. {step}")


@app.command()
def release(
    notebooks: Annotated[
        list[Path] | None, typer.Argument(help="Notebooks or folders; if none, all of notebooks/.")
    ] = None,
    out: Annotated[Path, typer.Option(help="A new folder, or that of an earlier release.")] = RELEASE,
    force: Annotated[
        bool, typer.Option("--force", help="Write over changed files too; a copy of each is kept beside it.")
    ] = False,
) -> None:
    """The student version of notebooks: no solutions, no hidden tests, no outputs."""
    from lossbook.book.classroom.release import release

    made = release(notebooks or None, out=out, force=force)
    for path in made.kept:
        typer.echo(f"lossbook: what was there is kept as {path}", err=True)
    typer.echo(f"{made.notebooks} notebooks with {made.exercises} exercises in {out}")


@app.command()
def grade(
    folder: Annotated[Path, typer.Argument(help="A folder for each student, or one student's notebooks.")],
    notebook: Annotated[
        list[Path] | None,
        typer.Option(help="A notebook or folder of the book to judge; may be repeated. If none, what was handed in."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for grades.csv and totals.csv.")] = GRADES,
    workers: Workers = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for a cell of a student, or a test.")] = 60.0,
    memory: Annotated[float, typer.Option(min=0.1, help="GiB that a notebook may take beyond the libraries.")] = 4.0,
) -> None:
    """Judge what students hand in by the book's tests; status 1 if a notebook could not be judged."""
    from lossbook.book.classroom.grade import grade, table, totals
    from lossbook.book.runner import Interrupted

    try:
        marks = grade(folder, notebooks=notebook or None, out=out, workers=workers, timeout=timeout, memory=memory)
    except Interrupted as interrupt:
        kept = f"the marks so far are in {out}" if interrupt.results else "no notebook was judged yet"
        typer.echo(f"lossbook: {interrupt}; {kept}", err=True)
        raise typer.Exit(128 + interrupt.signum) from None
    for frame in (table(marks), totals(marks)):
        numbers = frame[["points", "of"]].map("{:g}".format, na_action="ignore").fillna("–")
        _table(frame.assign(**numbers), right=set(numbers))
    unjudged = [mark for mark in marks if mark.points is None]
    typer.echo(f"{len(marks) - len(unjudged)} tests judged; the tables are in {out}")
    if unjudged:
        typer.echo(f"lossbook: {len(unjudged)} could not be judged; the table says why", err=True)
        raise typer.Exit(1)


@audits.command("calibration")
def audit_calibration(
    predictions: Annotated[
        Path, typer.Option(help="Logits or probabilities, a row a sample: .npz, .npy, .csv or .parquet.")
    ],
    out: Annotated[Path, typer.Option(help="The folder of the report.")],
    labels: Annotated[
        Path | None, typer.Option(help="A file of labels; if none, they are in the predictions'.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="The name of the labels' column or array.")] = None,
    bins: Annotated[int, typer.Option(min=1, help="Bins of equal width.")] = 15,
    sample_rows: Annotated[int, typer.Option(min=1, help="Rows to fit calibrators on, at most.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples, the sample and the folds.")] = 0,
    timeout: Timeout = 3600.0,
) -> None:
    """Is the model as often right as it says? A report, and a calibrator for `lossbook calibrate`."""
    from lossbook.book.audit.command import audit_calibration, findings

    page = audit_calibration(
        predictions,
        labels,
        out,
        label_column=label_column,
        n_bins=bins,
        sample_rows=sample_rows,
        seed=seed,
        timeout=timeout,
    )
    typer.echo(findings(page.parent))
    typer.echo(f"Open {page.resolve()}")


@audits.command("collapse")
def audit_collapse(
    features: Annotated[Path, typer.Option(help="Penultimate features, a row a sample: .npz, .npy, .csv or .parquet.")],
    labels: Annotated[Path | None, typer.Option(help="A file of labels; if none, they are in the features'.")] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="The last layer: .npz with weight (C, d) and bias (C,), or .npy with weight.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of the report.")] = COLLAPSE_AUDIT,
    label_column: Annotated[str | None, typer.Option(help="The name of the labels' column or array.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the halves, the lots and the sample.")] = 0,
    timeout: Timeout = 3600.0,
) -> None:
    """Have the features collapsed? NC1 to NC4, the angles between classes, the effective rank."""
    from lossbook.book.audit.command import audit_collapse, findings

    page = audit_collapse(
        features, labels, out, classifier=classifier, label_column=label_column, seed=seed, timeout=timeout
    )
    typer.echo(findings(page.parent))
    typer.echo(f"Open {page.resolve()}")


@app.command()
def compare(
    data: Annotated[
        str,
        typer.Option(
            help="A table (.csv, .tsv, .parquet, .npz), a folder or .zip of images with a folder a class, or a dataset "
            "of the book."
        ),
    ],
    losses: Annotated[
        str,
        typer.Option(
            help='Such as "cross_entropy, focal(gamma=[1, 2, 3])"; a list is a choice, and the first '
            "loss is what the others are held against."
        ),
    ],
    target: Annotated[str | None, typer.Option(help="The column of the labels, if it is not one of the usual.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="A column that is no feature; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="The folder of the report.")] = COMPARISON,
    metric: Annotated[
        Literal["accuracy", "macro_accuracy", "log_loss"], typer.Option(help="What to choose and to compare by.")
    ] = "accuracy",
    seeds: Annotated[
        int, typer.Option(min=3, help="Splits of the rows, each with weights and batches of its own.")
    ] = 5,
    lr: Annotated[list[float] | None, typer.Option(help="A learning rate to choose among; may be repeated.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="If none, as many as make 600 steps, 10 to 150.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step.")] = 64,
    model: Annotated[
        Literal["auto", "mlp", "linear", "cnn"], typer.Option(help="auto: mlp for a table, cnn for images.")
    ] = "auto",
    rows: Annotated[int, typer.Option(min=1, help="Of more, a random sample of so many.")] = 20_000,
    image_size: Annotated[int, typer.Option(min=4, help="Side in pixels to which images are scaled.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample, and the first of the splits.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    timeout: Timeout = 86_400.0,
) -> None:
    """Which loss suits your own rows? The same tuning for each, several splits, and what is more than chance."""
    from lossbook.book.compare.command import NETWORKS, compare_losses, findings
    from lossbook.book.runner import Interrupted

    try:
        page = compare_losses(
            data,
            losses,
            out,
            target=target,
            ignore=ignore or [],
            metric=metric,
            model=model,
            seeds=seeds,
            rates=lr or [],
            epochs=epochs,
            batch_size=batch_size,
            rows=rows,
            image_size=image_size,
            seed=seed,
            device=device,
            timeout=timeout,
        )
    except Interrupted as interrupt:
        kept = f"what was trained is kept in {out / NETWORKS}, and the same command goes on from there"
        typer.echo(f"lossbook: {interrupt}; {kept}", err=True)
        raise typer.Exit(128 + interrupt.signum) from None
    typer.echo(findings(page.parent))
    typer.echo(f"Open {page.resolve()}")


@app.command()
def calibrate(
    calibrator: Annotated[Path, typer.Option(help="The calibrator.json of an audit.")],
    predictions: Annotated[Path, typer.Option(help="Logits or probabilities: .npz, .npy, .csv or .parquet.")],
    out: Annotated[Path, typer.Option(help="Where the probabilities go: .npy, .csv or .parquet.")],
) -> None:
    """Apply a calibrator to predictions."""
    from lossbook.book.audit.command import calibrate

    rows = calibrate(calibrator, predictions, out)
    typer.echo(f"{rows:,} rows of probabilities in {out}")


def main() -> None:
    """The entry point: an error is one sentence on stderr, and a status."""
    # nbformat's validator would compile grammars of internet addresses, for seconds, to check what no notebook has.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    sys.exit(_main(sys.argv[1:]))


def _main(argv: Sequence[str]) -> int:
    try:
        return app(_join_pairs(argv), prog_name="lossbook", standalone_mode=False) or 0
    except typer.TyperException as error:
        # Without a message it has shown the help already.
        if message := error.format_message():
            typer.echo(f"lossbook: {message}", err=True)
        return error.exit_code
    except Exception as error:
        from lossbook.book.runner import RunError
        from lossbook.book.site import SiteError

        # What the package raises to be read; anything else is a mistake of its own, and needs its traceback.
        if not isinstance(error, RunError | SiteError | ValueError | OSError):
            raise
        typer.echo(f"lossbook: {_sentence(error)}", err=True)
        return 1


def _sentence(error: Exception) -> str:
    """What an error says; of one of the system's, such as a full disk, the file and the reason without its number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename or 'the output'}: {error.strerror}"


def _run(**arguments: Any) -> list[Result]:
    from lossbook.book.runner import Interrupted, run_notebooks

    try:
        return run_notebooks(**arguments)
    except Interrupted as interrupt:
        kept = f"{len(interrupt.results)} finished and kept"
        typer.echo(f"lossbook: {interrupt}; {kept}, and the same command goes on from there", err=True)
        raise typer.Exit(128 + interrupt.signum) from None


def _show_results(results: Sequence[Result]) -> bool:
    """A row per notebook; True if all are good."""
    import pandas as pd

    rows = [(_short(r.notebook), r.status, f"{r.seconds:.1f} s", f"{r.overhead:.1f} s", r.error or "") for r in results]
    _table(pd.DataFrame(rows, columns=["notebook", "result", "took", "start-up", "error"]), right={"took", "start-up"})
    return all(result.status != "failed" for result in results)


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _show_claims(executed: Path) -> bool:
    """A row per claim; True if all are as the catalogue expects."""
    from lossbook.book.results import claims_table

    table = claims_table(executed)
    shown = table.assign(ok=table.ok.map({True: "✓", False: "✗"})).drop(columns="notebook")
    _table(shown, right={"seeds"})
    typer.echo(f"{table.ok.sum()} of {len(table)} claims are as the catalogue expects")
    return bool(table.ok.all())


def _show_measurements(measurements: Sequence[Measurement]) -> None:
    """A table a group, ours above the peer's; what no measurement of the group has gets no column."""
    from itertools import groupby

    import pandas as pd

    for group, members in groupby(measurements, key=lambda m: m.group):
        rows = list(members)
        frame = pd.DataFrame(
            {
                group: [f"{m.name}\nagainst {m.peer_name}{f'; {m.note}' if m.note else ''}" for m in rows],
                "time,\nthe peer's": [f"{m.ours:.3g} s\n{m.peer:.3g} s" for m in rows],
                "times\nas fast": [f"{m.ratio:.2f}\n({m.low:.2f} to {m.high:.2f})" for m in rows],
                "promised": [m.promise and f"{m.promise} {'✓' if m.kept else '✗'}" for m in rows],
                "extra MiB,\nthe peer's": [
                    "" if m.memory is None else "{:,.0f}\n{:,.0f}".format(*m.memory) for m in rows
                ],
                "of the\nceiling": ["" if m.ceiling is None else f"{m.ceiling:.0%}" for m in rows],
            }
        )
        _table(frame.loc[:, (frame != "").any()], right=set(frame.columns[1:]))


def _table(frame: pd.DataFrame, right: Collection[str] = ()) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for column in frame.columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(Text(str(value)) for value in row))
    # In a file or a pipe there is no window to fit into.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _join_pairs(argv: Iterable[str]) -> list[str]:
    """`-p name value`, as papermill has it, becomes `-p name=value`: one option takes one word."""
    words = list(argv)
    joined: list[str] = []
    while words:
        word = words.pop(0)
        if word == "-p" and len(words) > 1 and "=" not in words[0]:
            words[:2] = [f"{words[0]}={words[1]}"]
        joined.append(word)
    return joined


def _parameters(pairs: Iterable[str]) -> dict[str, Any]:
    """Name to value; a value is a Python literal if it reads as one, else a string."""
    parameters = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"-p takes a name and a value, not {pair!r}")
        try:
            parameters[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parameters[name] = value
    return parameters


if __name__ == "__main__":
    main()
