"""The figures that a terminal shows beside the text, on stderr: a summary, and the compute of each token."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ..format.manifest import Manifest
from ..terminal.text import console, printable
from .request import Token
from .summary import Summary

# From little compute to much; legible on a light and a dark background, and in order for the colour-blind too.
SCALE = ("#2166ac", "#4393c3", "#7fbf7b", "#d9a441", "#d6604d", "#b2182b")


def summary_lines(summary: Summary, manifest: Manifest) -> list[str]:
    """Write two lines: how fast, and how much of the model was used."""
    if not summary.new_tokens:
        return [f"0 new tokens · prompt of {summary.prompt_tokens} · {summary.finish_reason}"]
    model = manifest.model
    reason = summary.finish_reason
    ending = reason if reason == "interrupted" else f"ended by {reason}"
    reused = f", {summary.cached_tokens} of it in memory," if summary.cached_tokens else ""
    prompt = f"prompt of {summary.prompt_tokens}{reused} in {summary.prompt_seconds * 1000:.1f} ms"
    speed = (
        f"{summary.new_tokens} tokens · {summary.tokens_per_second:.1f} tokens/s · {summary.p50:.2f} ms per token, "
        f"p95 {summary.p95:.2f} · {prompt} · {ending}"
    )
    drafts = f" · {summary.accepted} of {summary.drafted} guesses right" if summary.drafted else ""
    heads = f"{summary.heads_per_token:.2f} of {model.num_heads} heads · " if model.routes_heads else ""
    seed = "" if summary.seed is None else f" · seed {summary.seed}"  # a beam search has none
    used = (
        f"{summary.experts_per_token:.2f} of {model.num_experts} experts · {heads}{summary.layers_per_token:.2f} of "
        f"{model.num_layers} layers · {summary.executed_flops_share:.1%} of dense FLOPs{drafts}{seed}"
    )
    return [speed, used]


def show_summary(summary: Summary, manifest: Manifest) -> None:
    """Print the summary in grey, below the text."""
    out = console()
    for line in summary_lines(summary, manifest):
        out.print(line, style="dim", markup=False)


def show_tokens(tokens: Sequence[Token], manifest: Manifest) -> None:
    """Print the text coloured by compute, then a table with a row per token."""
    out = console()
    shares = [token.usage.flops_share for token in tokens]
    if shares and out.color_system:
        low, high = min(shares), max(shares)
        out.print(coloured(tokens, low, high))
        legend = Text("share of dense FLOPs: ", style="dim")
        legend.append(f"{low:.0%} ", style=SCALE[0])
        for colour in SCALE:
            legend.append("■", style=colour)
        legend.append(f" {high:.0%}", style=SCALE[-1])
        out.print(legend)
    out.print(table(tokens, manifest), soft_wrap=False)


def coloured(tokens: Sequence[Token], low: float, high: float) -> Text:
    """Colour the text of each token by its share of dense FLOPs, on a scale from `low` to `high`.

    White space before the first word, which shows no colour, is left out.
    """
    text = Text()
    for token in tokens:
        place = (token.usage.flops_share - low) / (high - low) if high > low else 0.5
        shown = printable(token.text if text else token.text.lstrip(), lines=True)
        text.append(shown, style=SCALE[min(int(place * len(SCALE)), len(SCALE) - 1)])
    return text


def table(tokens: Sequence[Token], manifest: Manifest) -> Table:
    """Make a row per token: text, experts in each layer, layers run, exit, share of FLOPs, time.

    A layer that was skipped shows `-`, one that ran without an expert `none`.
    A model that has them also shows the number of heads and the window in each layer (`-` if skipped, `all` for none).
    """
    model = manifest.model
    rows = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    rows.add_column("token", no_wrap=True)
    rows.add_column(f"experts per layer, of {model.num_experts}")
    if model.routes_heads:
        rows.add_column(f"heads per layer, of {model.num_heads}")
    if model.has_windows:
        rows.add_column("window per layer")
    rows.add_column(f"layers of {model.num_layers}", justify="right")
    rows.add_column("exit", justify="right")
    rows.add_column("FLOPs", justify="right")
    rows.add_column("ms", justify="right")
    ends = model.ends
    for token in tokens:
        usage = token.usage
        run = set(usage.layers_run)
        experts = " | ".join(
            (",".join(map(str, used)) or "none") if layer in run else "-" for layer, used in enumerate(usage.experts)
        )
        cells = [experts]
        if model.routes_heads:  # ids would fill the line; `--json` has them
            cells.append(" ".join(str(len(used)) if layer in run else "-" for layer, used in enumerate(usage.heads)))
        if model.has_windows:
            seen = ((str(window or "all") if layer in run else "-") for layer, window in enumerate(usage.windows))
            cells.append(" ".join(seen))
        leave = "" if usage.exit_layer is None else str(usage.exit_layer)
        name = Text("<end>", style="dim") if token.id in ends else Text(repr(printable(token.text))[1:-1])
        share, milliseconds = f"{usage.flops_share:.0%}", f"{token.seconds * 1000:.2f}"
        rows.add_row(name, *cells, str(len(run)), leave, share, milliseconds)
    return rows
