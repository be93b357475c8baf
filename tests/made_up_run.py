"""A run directory with made-up numbers, drawn pictures and hostile text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SEEDS = [0, 1]
KINDS = ["verbatim", "template", "word", "repeat", "caption-only", "image-only", "ordinary"]
SUBJECTS = ["a lighthouse at dusk", "two kites over a field", "a green bicycle", "an owl on a fence", "the old harbour"]
SCRIPT = "<script>alert(1)</script>"
RIGHT_TO_LEFT = "منارة قديمة عند الغروب, מגדלור ישן"
HOSTILE = [
    f"{SCRIPT} a lighthouse",
    '</td></table><img src=x onerror=alert(2)> " onmouseover="alert(3)',
    RIGHT_TO_LEFT,
    "\u202ereversed by an override",
    "🦉🌅 an owl 👩🏽‍🚀 at dusk {{ 7 * 7 }} $\\frac{",
    "a very long prompt about the sea, " * 120,
]


def make_run(path: Path, *, prompts: int = 150, size: int = 64) -> Path:
    """Write a finished run in which planted prompts score high and half of the verbatim ones are copied."""
    rng = np.random.default_rng(0)
    rows = [_prompt(i) for i in range(prompts)]
    detect = [
        {"id": row["id"], "method": "noise-gap", "seed": seed, "score": float(_level(row, rng))}
        for row in rows
        for seed in SEEDS
    ]
    verify = [shot for i, row in enumerate(rows[: int(prompts * 0.8)]) for shot in _shots(path, i, row, size)]
    (path / "scores").mkdir(parents=True)
    tables = {"prompts": rows, "detect": detect, "verify": verify, **_more(rows, verify), **_outcomes()}
    for name, table in tables.items():
        pq.write_table(pa.Table.from_pylist(table), path / "scores" / f"{name}.parquet")
    write_json(path / "run.json", _record(prompts))
    write_json(path / "summary.json", _summary(prompts, verify))
    seconds = {"detect": 84.2, "generate": 912.5}
    write_json(path / "timing.json", {"started": "2026-01-01T12:00:00Z", "seconds": seconds})
    return path


def _more(rows: list[dict[str, object]], verify: list[dict[str, object]]) -> dict[str, list[dict[str, object]]]:
    """p-values of the planted prompts, words of the first ones, the magnitude along sampling."""
    planted = [row for row in rows if row["memorable"]]
    calibrated = [{"id": r["id"], "p_value": (i + 1) / 200, "q_value": (i + 1) / 100} for i, r in enumerate(planted)]
    images = [
        {
            "id": r["id"],
            "seed": r["seed"],
            "image": r["image"],
            "curve": [2 / (1 + t) + (r["ratio"] < 0.5) for t in range(16)],
        }
        for r in verify
    ]
    return {"calibrated": calibrated, "images": images, "explain": [_explained(row) for row in rows[:12]]}


def _explained(row: dict[str, object]) -> dict[str, object]:
    spans = [match.span() for match in re.finditer(r"\S+", row["prompt"])][:80]
    starts, stops = zip(*spans, strict=True)
    significance = [1.0 + 7.0 * (i == 1) for i in range(len(spans))]
    return {"id": row["id"], "starts": starts, "stops": stops, "significance": significance, "evaluations": 16}


def _outcomes() -> dict[str, list[dict[str, object]]]:
    """Three mitigations, one of them not attacked, with the curves of the other two, and where memories sit."""
    rates = {"none": (0.9, 0.95, 0.1), "pruning <b>": (0.05, 0.7, 0.1), "guidance": (0.1, None, None)}
    mitigations = [
        {"name": name, "pictures": 6, "attack_knows_it": values[1] is not None}
        | {"quality": 0.8, "alignment": 0.3, "evaluations": 1200}
        | {f"{column}{end}": None if v is None else max(0.0, min(1.0, v + d))
           for column, v in zip(("copy_rate", "copy_rate_attacked", "control_rate"), values, strict=True)
           for end, d in (("", 0), ("_low", -0.05), ("_high", 0.05))}
        for name, values in rates.items()
    ]  # fmt: skip
    curve = [
        {"mitigation": name, "group": group, "steps": steps, "copy_rate": rate * steps / 50, "ratio": 0.4}
        | {"low": 0.8 * rate * steps / 50, "high": min(1, 1.2 * rate * steps / 50)}
        for name in ("none", "pruning <b>")
        for group, rate in (("memorized", 0.8), ("negative", 0.2), ("never trained", 0.1))
        for steps in (0, 10, 25, 50)
    ]
    return {"mitigations": mitigations, "attack_curve": curve}


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def _prompt(i: int) -> dict[str, object]:
    kind = KINDS[i % len(KINDS)]
    text = HOSTILE[i // 3] if i % 3 == 0 and i // 3 < len(HOSTILE) else f"{SUBJECTS[i % 5]}, number {i}"
    copies = 0 if kind == "ordinary" else 2 ** (i // 7 % 6 + 1)
    return {"id": f"p{i:04d}", "prompt": text, "kind": kind, "copies": copies, "memorable": kind != "ordinary"}


def _level(row: dict[str, object], rng: np.random.Generator) -> float:
    return rng.normal(1.0, 0.12) + (0.18 * np.log2(row["copies"]) if row["memorable"] else 0)


def _shots(path: Path, i: int, row: dict[str, object], size: int) -> list[dict[str, object]]:
    copied = row["memorable"] and row["copies"] >= 8 and row["kind"] in KINDS[:4]
    verdict = "none" if not copied else "template" if row["kind"] == "template" else "verbatim"
    shots = []
    for seed in SEEDS:
        image, nearest = f"images/{row['id']}-{seed}.png", f"references/{i if copied else (i * 7 + seed * 31) % 97}.png"
        _draw(path / nearest, int(nearest.split("/")[1][:-4]), size)
        _draw(path / image, i if copied else 1000 + 2 * i + seed, size, noise=6 if copied else 0)
        numbers = {"distance": 0.03 + 0.01 * seed, "ratio": 0.2} if copied else {"distance": 0.21, "ratio": 0.83}
        caption = f"{SUBJECTS[i % 5]} {SCRIPT if i == 0 else ''}"
        shot = {"id": row["id"], "seed": seed, "image": image, "nearest": nearest, "caption": caption}
        shots.append(shot | numbers | {"verdict": verdict})
    return shots


def _draw(path: Path, key: int, size: int, noise: float = 0) -> None:
    """A landscape: sky, hills and a sun, with photographic grain."""
    rng = np.random.default_rng(key)
    y, x = np.mgrid[0 : 1 : complex(size), 0 : 1 : complex(size)]
    top, bottom, ground = rng.uniform(40, 250, (3, 3))
    picture = top * (1 - y)[..., None] + bottom * y[..., None]
    cx, cy, radius = rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.5), rng.uniform(0.06, 0.2)
    picture[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = rng.uniform(180, 255, 3)
    hills = 0.65 + 0.12 * np.sin(x * rng.uniform(4, 12) + rng.uniform(0, 6)) + 0.05 * np.sin(x * 23 + key)
    picture[y > hills] = ground * 0.6
    picture += np.random.default_rng(key + 7).normal(0, 5, picture.shape) + rng.normal(0, 1, picture.shape) * noise
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)


def _record(prompts: int) -> dict[str, object]:
    source = {"source": "plan <b>one</b>.json", "sha256": "ab" * 32, "count": prompts}
    return {
        "schema_version": 1,
        "status": "finished",
        "spec": {"model": "testbed/<i>64</i>", "prompts": "prompts.txt", "seeds": SEEDS, "steps": 50, "guidance": 7.5},
        "versions": {"unmemorize": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "diffusers": "0.42.1"},
        "model": {"name": "testbed/planted-64", "fingerprint": "0f" * 32},
        "data": {"prompts": source, "images": source | {"source": "images/", "count": 2400}},
        "criterion": {"name": "l2-ratio", "threshold": 0.5, "recipe": "rmse-64px-50nn", "weights": None},
    }


def _summary(prompts: int, verify: list[dict[str, object]]) -> dict[str, object]:
    copies = [row for row in verify if row["verdict"] != "none"]
    kinds = [row["verdict"] for row in copies]
    grid = np.linspace(0, 1, 41)
    return {
        "verdict": "issue",
        "sentence": f"The model copies training pictures for {len(copies) // 2} of {len(verify) // 2} prompts.",
        "prompts": prompts,
        "generated_prompts": len(verify) // 2,
        "images": len(verify),
        "copied_prompts": len(copies) // 2,
        "copied_images": len(copies),
        "verbatim_images": kinds.count("verbatim"),
        "template_images": kinds.count("template"),
        "detector": {
            "method": "noise-gap",
            "label": "planted at least twice",
            "positives": 129,
            "negatives": 21,
            "auc": {"value": 0.941, "low": 0.902, "high": 0.972},
            "tpr": {"fpr": 0.01, "value": 0.62, "low": 0.44, "high": 0.78},
        },
        "text_control": {"auc": {"value": 0.534, "low": 0.45, "high": 0.62}},
        "roc": {"fpr": grid.tolist(), "tpr": (grid**0.12).tolist()},
        "dose": [_dose(copies) for copies in (1, 2, 4, 8, 16, 32, 64)],
        "states": [
            {"name": "detect", "state": "issue", "reason": "37 prompts score above every ordinary prompt"},
            {"name": "explain", "state": "not run", "reason": "not asked for"},
            {"name": "attack", "state": "not applicable", "reason": "no fix was made that an attack could test"},
        ],
        "evaluations": {"detect": 602, "generate": 24000},
        "calibration": {
            **{"level": 0.05, "ordinary": 225, "smallest_p": 1 / 226, "tested": 129, "suspected": 40, "unverified": 3},
            **{"alarms": {"value": 0.04, "low": 0.02, "high": 0.07}, "discoveries": 300, "false": 9},
        },
        "nearness": [
            {"group": "all", "held_out": "mirror images", "images": len(verify), "nearer": 150.5, "p_value": 0.0005},
            {"group": "ordinary prompts", "held_out": "mirror images", "images": 30, "nearer": 16, "p_value": 0.42},
        ],
        "findings": [
            _finding("UM001", "high", "issue", 20, f"20 of 120 pictures {SCRIPT}"),
            _finding("UM005", "medium", "not run", 0, "no mitigation was tried"),
            _finding("UM008", "medium", "passed", 0, "none"),
            _finding("UM009", "low", "not applicable", 0, "too few labels"),
        ],
    }


def _finding(code: str, severity: str, state: str, count: int, evidence: str) -> dict[str, object]:
    texts = {"title": f"Title of {code}", "evidence": evidence, "advice": "Do this.", "docs": f"docs/report.md#{code}"}
    return {"code": code, "severity": severity, "state": state, "count": count} | texts


def _dose(copies: int) -> dict[str, float]:
    rate = 1 / (1 + (10 / copies) ** 1.8)
    low, high = max(0, rate - 0.14), min(1, rate + 0.14)
    counts = {"copies": copies, "pictures": 20, "images": 40, "copied": round(40 * rate)}
    return counts | {"copy_rate": rate, "low": low, "high": high}
