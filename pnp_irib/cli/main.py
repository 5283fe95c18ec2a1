"""``pnp-irib``: options and exit codes. Heavy modules load inside the commands, so that help and usage errors are instant.

Exit codes: 0 all done, 1 some inputs failed, 2 usage or configuration error, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from pnp_irib.cli.messages import reason_of
from pnp_irib.errors import PnPIribError

__all__ = ["app", "main"]

app = typer.Typer(
    name="pnp-irib",
    help="Restore extremely degraded pictures with any frozen restorer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point: every error is one line, never a traceback (``PNP_IRIB_DEBUG=1`` shows it)."""
    code = 0
    # oneDNN keeps what it prepared for each of the last 1024 sizes of convolutions: gigabytes over a folder of many sizes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - for the life of the process
    warnings.showwarning = show_warning  # type: ignore[assignment]
    signal.signal(signal.SIGTERM, terminate)
    try:
        code = app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except PnPIribError as error:
        debug()
        fail(str(error), 2)
    except BrokenPipeError:
        # The reader of our output (head, less) went away; nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        debug()
        fail(reason_of(error), 2)
    except Exception as error:
        # A usage error of click, which some versions of typer carry inside and others import.
        if callable(message := getattr(error, "format_message", None)):
            fail(" ".join([*message().split(), "Try --help."]), 2)
        debug()
        reason = " ".join(str(error).split())[:300]
        fail(f"internal error: {type(error).__name__}: {reason} (PNP_IRIB_DEBUG=1 shows where)", 2)
    if code == 130:  # some versions of typer answer so themselves
        fail(*("terminated", 143) if Terminated.came else ("interrupted", 130))
    raise SystemExit(code)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: half-written files are cleared away as for Ctrl-C."""

    came = False  # typer turns it into something else


def terminate(*_: object) -> None:
    """Handler of SIGTERM."""
    Terminated.came = True
    raise Terminated


def show_warning(message: Warning | str, *_: object) -> None:
    """A warning of the library as one line; each once, as Python's filters have it."""
    typer.echo(f"pnp-irib: note: {' '.join(str(message).split())}", err=True)


def fail(message: str, code: int) -> None:
    """Print one line and leave."""
    typer.echo(f"pnp-irib: {message}", err=True)
    raise SystemExit(code)


def debug() -> None:
    """Let the traceback through when a developer asks for it."""
    if os.environ.get("PNP_IRIB_DEBUG"):
        raise


def version(show: bool) -> None:
    """Print the version and leave."""
    if show:
        from pnp_irib import __version__

        typer.echo(f"pnp-irib {__version__}")
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options of all commands."""


def path_of(text: str) -> Path:
    """A path of the command line. An empty one, often that of a variable never set, is not the current folder."""
    if not text:
        raise typer.BadParameter("the path is empty; for the current folder write '.'.")
    return Path(text)


Restorer = Annotated[str, typer.Option("--restorer", "-r", help="Name of the restorer; see `pnp-irib models`.")]
ProjectorName = Annotated[str, typer.Option("--projector", "-p", help="auto, none, hf-hub:OWNER/REPO or local-dir:PATH.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-O", metavar="NAME=VALUE", help="Option of the restorer, such as weights=PATH; repeatable."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16; of the restorer.")]


@app.command()
def restore(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN...", parser=path_of, help="Pictures, or folders (all below).")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", parser=path_of, help="Folder; for one picture also a file.")
    ],
    restorer: Restorer = "realesrgan-x4plus",
    option: Options = None,
    projector: ProjectorName = "auto",
    lfo: Annotated[int, typer.Option(min=0, max=16, help="Rounds of Look Forward Once.")] = 0,
    prompt: Annotated[str | None, typer.Option(help="What the pictures show.")] = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            help="What reads prompts off pictures: none, imagenet-tags, fixed:TEXT, dape:PATH or ram:PATH (tags of RAM, with "
            "the files at PATH), caption:PATH (a model of transformers that captions); default: imagenet-tags for looking "
            "forward."
        ),
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Enlargement; default: the restorer's own.")] = None,
    strength: Annotated[float, typer.Option(help="0: the restorer alone; 1: the full projection.")] = 1.0,
    tile: Annotated[str, typer.Option(help="auto, none, or the side of the tiles in pixels.")] = "auto",
    color: Annotated[
        str | None, typer.Option(help="Take colours over from a reference: adain, wavelet; default: as the restorer does.")
    ] = None,
    color_reference: Annotated[
        str | None, typer.Option(help="For --color: lq (the projector's estimate; default) or elq (the input).")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    compare: Annotated[bool, typer.Option("--compare", help="Also write input, LQ and result side by side.")] = False,
    consistency: Annotated[
        bool, typer.Option("--consistency", help="Also write where the result contradicts the input.")
    ] = False,
    format: Annotated[str | None, typer.Option(help="png, jpg, webp, tif, bmp; default: that of the input.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a picture on standard output.")] = False,
    max_pixels: Annotated[float | None, typer.Option(help="Largest input, megapixels (64).")] = None,
    max_output_pixels: Annotated[float | None, typer.Option(help="Largest output, megapixels (72).")] = None,
) -> None:
    """Restore pictures."""
    from pnp_irib.cli.restore import Job, Model, run

    if color_reference is not None and color is None:
        raise typer.BadParameter(
            "say with --color how its colours are taken over: adain, wavelet.", param_hint="--color-reference"
        )
    options = {
        "prompt": prompt,
        "scale": scale,
        "strength": strength,
        "lfo": lfo,
        "seed": seed,
        "tile": tile_option(tile),
        "color": color,
        "color_reference": color_reference or "lq",
        "max_pixels": megapixels(max_pixels, "--max-pixels"),
        "max_output_pixels": megapixels(max_output_pixels, "--max-output-pixels"),
    }
    job = Job(inputs, output, format, compare, consistency, overwrite, fail_fast, as_json)
    model = Model(restorer, restorer_options(option), projector, extractor, device, dtype)
    raise typer.Exit(run(job, model, options))


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="The whole specs as JSON.")] = False,
) -> None:
    """List the restorers: scale, prompts, licences, where the weights come from, what is here already."""
    from pnp_irib.cli.models import show

    show(as_json=as_json)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", parser=path_of, help="Weights as they were published; of a tagger, their folder.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.safetensors", parser=path_of, help="The copy.")],
    restorer: Annotated[
        str, typer.Option("--restorer", "-r", help="Whose they are; see `pnp-irib models`. Also a tagger: dape, ram.")
    ],
    dtype: Annotated[str | None, typer.Option(help="Of a tagger's copy: float32 (default), float16.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing copy.")] = False,
) -> None:
    """Copy published weights to safetensors, which hold no code."""
    from pnp_irib.cli.convert import run

    run(source, output, restorer, dtype, overwrite=overwrite)


@app.command()
def degrade(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN...", parser=path_of, help="Pictures, or folders.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", parser=path_of, help="Folder; for one picture also a file.")
    ],
    preset: Annotated[str, typer.Option("--preset", help="light, standard, codeformer, extreme, stress.")] = "extreme",
    seed: Annotated[int, typer.Option(min=0, help="The same seed and file name give the same picture.")] = 0,
    scale: Annotated[int, typer.Option(min=1, max=16, help="HQ size over LQ size.")] = 4,
    format: Annotated[str | None, typer.Option(help="png, jpg, webp, tif, bmp; default: by OUT, else png.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print what was drawn.")] = False,
) -> None:
    """Degrade pictures with a preset, to try restorers on."""
    from pnp_irib.cli.degrade import run

    raise typer.Exit(run(inputs, output, preset, seed, scale, format, overwrite=overwrite, verbose=verbose))


TrainingConfig = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="See docs/training.md.")]
Run = Annotated[Path | None, typer.Option("--run", help="Run directory; default: runs/ and the name of CONFIG.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")]
MaxHours = Annotated[float | None, typer.Option(help="Stop, with a checkpoint, after this time.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]


@app.command()
def train(
    config: TrainingConfig,
    run: Run = None,
    resume: Resume = False,
    max_hours: MaxHours = None,
    threads: Threads = None,
) -> None:
    """Train a projector."""
    from pnp_irib.cli.train import train as start

    start(config, run or Path("runs", config.stem), resume=resume, max_hours=max_hours, threads=threads)


@app.command("train-prior")
def train_prior(
    config: TrainingConfig,
    run: Run = None,
    resume: Resume = False,
    max_hours: MaxHours = None,
    threads: Threads = None,
) -> None:
    """Train a denoiser of pixels on HQ pictures, as a prior for `train`."""
    from pnp_irib.cli.train_prior import train_prior as start

    start(config, run or Path("runs", config.stem), resume=resume, max_hours=max_hours, threads=threads)


@app.command()
def bench(
    data: Annotated[Path, typer.Option("--data", help="Folder of HQ pictures.")],
    restorer: Restorer = "realesrgan-x4plus",
    option: Options = None,
    projector: ProjectorName = "auto",
    preset: Annotated[str, typer.Option("--preset", help="light, standard, codeformer, extreme, stress.")] = "extreme",
    seed: Annotated[list[int] | None, typer.Option("--seed", help="May be given several times. Default: 0.")] = None,
    lfo: Annotated[int, typer.Option(min=0, max=16, help="Rounds of Look Forward Once.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first pictures.")] = None,
    scale: Annotated[int | None, typer.Option(min=1, max=16, help="HQ size over LQ size; default: the restorer's.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder of the report.")] = Path("out/bench"),
    dtype: Dtype = "auto",
) -> None:
    """Measure a restorer alone and wrapped: JSON, Markdown and a picture grid."""
    from pnp_irib.cli.bench import run

    options = {
        "data": data,
        "restorer": restorer,
        "options": restorer_options(option),
        "projector": projector,
        "preset": preset,
        "seeds": tuple(seed or (0,)),
        "lfo": lfo,
        "limit": limit,
        "scale": scale,
        "dtype": dtype,
    }
    run(output, options)


@app.command()
def study(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="See docs/bench.md.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", parser=path_of, help="Of the page.")] = Path(
        "docs/evidence"
    ),
    threads: Threads = None,
    max_hours: Annotated[float | None, typer.Option(help="Stop after this time; the same command goes on.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many pictures, or sizes.")] = None,
) -> None:
    """Carry out a study: train, measure, compare; write its page."""
    from pnp_irib.cli.study import run

    raise typer.Exit(run(config, output, threads=threads, max_hours=max_hours, limit=limit))


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", parser=path_of, help="Of a trained or saved projector.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hub; made if absent.")],
    report: Annotated[
        list[Path] | None,
        typer.Option("--report", help="A bench.json of it, for the model card; repeatable."),
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Of the weights, such as apache-2.0.")] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
) -> None:
    """Push a projector to the Hub, with its model card."""
    from pnp_irib.cli.push import run

    run(folder, repo, report or [], licence, private=private)


@app.command("new-adapter")
def new_adapter(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the restorer: lower-case words with hyphens.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", parser=path_of, help="Where the package's folder is made.")
    ] = Path(),
) -> None:
    """Write a package with an adapter that installs, registers, and passes its test."""
    from pnp_irib.cli.new_adapter import run

    run(name, output)


OWN_OPTIONS = {
    **{name: f"Use --{name}." for name in ("restorer", "projector", "lfo", "scale", "dtype")},
    **{name: f"Use --{name}, where the command has it." for name in ("device", "extractor")},
    **dict.fromkeys(("self", "name", "multiple_of", "min_size", "lq_profile"), "It concerns other objects."),
}


def restorer_options(texts: list[str] | None) -> dict[str, Any]:
    """The values of ``--option``, as YAML reads them: numbers, true and false, null, mappings in braces; else text."""
    import yaml

    options: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"{text!r}: expected NAME=VALUE, such as weights=PATH.", param_hint="--option")
        if name in OWN_OPTIONS:
            raise typer.BadParameter(f"{name} is no option of a restorer. {OWN_OPTIONS[name]}", param_hint="--option")
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            read = value
        mapping = value.startswith("{") and isinstance(read, dict)  # else words with a colon would be one
        options[name] = read if value and (mapping or isinstance(read, int | float | bool | None)) else value
    return options


def tile_option(text: str) -> int | str | None:
    """The value of ``--tile``."""
    if text == "auto":
        return text
    if text == "none":
        return None
    if text.isdecimal():
        return int(text)
    raise typer.BadParameter(f"{text!r}: expected auto, none, or a number of pixels.", param_hint="--tile")


def megapixels(value: float | None, name: str) -> int | None:
    """Pixels of an option in megapixels."""
    if value is None:
        return None
    if not 0 < value < 1e6:
        raise typer.BadParameter(f"{value}: expected megapixels above 0.", param_hint=name)
    return int(value * 1e6)
