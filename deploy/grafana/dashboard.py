"""Write the dashboard: `python deploy/grafana/dashboard.py`. A test compares it with the file in `dashboards/`."""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "dashboards" / "adaptive.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
Queries = dict[str, str]
"""Legend -> PromQL."""


def rate(metric: str, by: str = "") -> str:
    """Return the rate of a counter, summed by a label."""
    return f'sum{f" by ({by})" if by else ""} (rate({metric}{{model=~"$model"}}[$__rate_interval]))'


def quantile(share: float, metric: str, where: str = 'model=~"$model"') -> str:
    """Return a quantile of a histogram."""
    return f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{{{where}}}[$__rate_interval])))"


def quantiles(metric: str) -> Queries:
    """Return median, 95th and 99th percentile."""
    return {f"p{round(share * 100)}": quantile(share, metric) for share in (0.5, 0.95, 0.99)}


def state(metric: str) -> str:
    """Return a gauge, summed over servers."""
    return f'sum by (model) ({metric}{{model=~"$model"}})'


def mean(metric: str) -> str:
    """Return the mean of a histogram."""
    return f"{rate(f'{metric}_sum')} / {rate(f'{metric}_count')}"


def share(part: str, whole: str) -> str:
    """Return one counter's rate over another's."""
    return f"{rate(part)} / {rate(whole)}"


# Rows of the dashboard -> panels: title, unit, queries, kind.
PANELS: dict[str, list[tuple[str, str, Queries, str]]] = {
    "Requests": [
        (
            "Requests by status",
            "reqps",
            {"{{status}}": "sum by (status) (rate(adaptive_http_requests_total[$__rate_interval]))"},
            "timeseries",
        ),
        (
            "Requests by route",
            "reqps",
            {"{{route}}": "sum by (route) (rate(adaptive_http_requests_total[$__rate_interval]))"},
            "timeseries",
        ),
        (
            "Time of a request",
            "s",
            {
                "p50": quantile(0.5, "adaptive_http_request_duration_seconds", 'route=~"/v1/.*"'),
                "p99": quantile(0.99, "adaptive_http_request_duration_seconds", 'route=~"/v1/.*"'),
            },
            "timeseries",
        ),
        ("In progress", "short", {"requests": "sum (adaptive_http_requests_in_progress)"}, "timeseries"),
        ("Refused", "reqps", {"{{reason}}": rate("adaptive_jobs_rejected_total", "reason")}, "timeseries"),
        ("Ends of jobs", "reqps", {"{{reason}}": rate("adaptive_jobs_total", "reason")}, "timeseries"),
    ],
    "Speed": [
        (
            "Tokens",
            "short",
            {
                "new": rate("adaptive_new_tokens_total"),
                "prompt": rate("adaptive_prompt_tokens_total"),
                "prompt, from memory": rate("adaptive_cached_prompt_tokens_total"),
            },
            "timeseries",
        ),
        ("Time to the first token", "s", quantiles("adaptive_time_to_first_token_seconds"), "timeseries"),
        ("Time between tokens", "s", quantiles("adaptive_time_between_tokens_seconds"), "timeseries"),
        (
            "Guessed tokens that were right",
            "percentunit",
            {"share": share("adaptive_accepted_tokens_total", "adaptive_drafted_tokens_total")},
            "timeseries",
        ),
    ],
    "Queue and batch": [
        ("Waiting", "short", {"{{model}}": state("adaptive_jobs_waiting")}, "timeseries"),
        ("Wait for a slot", "s", quantiles("adaptive_queue_seconds"), "timeseries"),
        (
            "Slots",
            "short",
            {"in use": state("adaptive_jobs_running"), "all": state("adaptive_slots")},
            "timeseries",
        ),
        (
            "Batch: mean of a pass",
            "short",
            {"sequences": mean("adaptive_pass_sequences"), "rows": mean("adaptive_pass_rows")},
            "timeseries",
        ),
        ("Time of a pass", "s", quantiles("adaptive_pass_seconds"), "timeseries"),
        (
            "Keys and values",
            "bytes",
            {"in use": state("adaptive_kv_bytes"), "limit": state("adaptive_kv_limit_bytes")},
            "timeseries",
        ),
    ],
    "Compute": [
        (
            "Executed share of dense FLOPs",
            "percentunit",
            {"share": share("adaptive_executed_flops_total", "adaptive_dense_flops_total")},
            "timeseries",
        ),
        (
            "Dial",
            "percentunit",
            {
                "auto, now": 'min by (model) (adaptive_auto_compute{model=~"$model"})',
                "mean of jobs": mean("adaptive_job_compute"),
            },
            "timeseries",
        ),
        ("FLOPs", "flops", {"executed": rate("adaptive_executed_flops_total")}, "timeseries"),
        (
            "Experts per layer run",
            "short",
            {"experts": share("adaptive_expert_tokens_total", "adaptive_layer_tokens_total")},
            "timeseries",
        ),
        (
            "Layers per token",
            "short",
            {"layers": share("adaptive_layer_tokens_total", "adaptive_new_tokens_total")},
            "timeseries",
        ),
        ("Tokens by layer", "short", {"{{layer}}": rate("adaptive_layer_tokens_total", "layer")}, "bargauge"),
        (
            "Tokens by layer and expert",
            "short",
            {"{{layer}}.{{expert}}": rate("adaptive_expert_tokens_total", "layer, expert")},
            "bargauge",
        ),
        (
            "Tokens by the layer they left after",
            "short",
            {"{{layer}}": rate("adaptive_exit_tokens_total", "layer")},
            "bargauge",
        ),
    ],
    "Process": [
        ("Memory", "bytes", {"{{instance}}": "process_resident_memory_bytes"}, "timeseries"),
        ("CPU", "short", {"{{instance}}": "rate(process_cpu_seconds_total[$__rate_interval])"}, "timeseries"),
        ("Version", "none", {"{{version}}": "sum by (version) (adaptive_build_info)"}, "stat"),
    ],
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard: three panels in a row."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, contents in PANELS.items():
        panels.append({"type": "row", "title": row, "collapsed": False, "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}})
        y += 1
        for index, (title, unit, queries, kind) in enumerate(contents):
            panels.append(
                {
                    "type": kind,
                    "title": title,
                    "datasource": SOURCE,
                    "gridPos": {"h": 8, "w": 8, "x": index % 3 * 8, "y": y + index // 3 * 8},
                    "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                    "targets": [
                        {
                            "refId": chr(ord("A") + number),
                            "datasource": SOURCE,
                            "expr": query,
                            "legendFormat": legend,
                            "instant": kind != "timeseries",
                        }
                        for number, (legend, query) in enumerate(queries.items())
                    ],
                }
            )
        y += -(-len(contents) // 3) * 8
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    model = {
        "name": "model",
        "type": "query",
        "datasource": SOURCE,
        "query": "label_values(adaptive_slots, model)",
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }
    return {
        "uid": "adaptive",
        "title": "adaptive serve",
        "schemaVersion": 41,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [model]},
        "panels": panels,
    }


def text() -> str:
    """Return the file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
