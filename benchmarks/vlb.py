"""The variational bound of the shipped 8 x 8 digits model on the 450 held-out digits.

Every one of the 1000 steps once, then chains of fewer steps on the same model. Writes
results/vlb.json: the ledgers in nats a picture (means over the pictures, with standard errors).
"""

import json
import time
from pathlib import Path

import torch
from machine import machine

from diffusion_lib import data, likelihood, load_pretrained
from diffusion_lib.likelihood import Ledger

SEED = 0
CHAINS = (10, 20, 50, 100, 200)  # steps of the shorter chains


def summary(ledger: Ledger) -> dict[str, float]:
    """Means over the pictures, and the standard error of the total."""
    bits = ledger.bits_per_dim
    return {
        "prior": round(ledger.prior.mean().item(), 6),
        "steps": round(ledger.steps.sum(0).mean().item(), 4),
        "decoder": round(ledger.decoder.mean().item(), 4),
        "bits_per_dim": round(bits.mean().item(), 4),
        "standard_error": round(bits.std().item() / len(bits) ** 0.5, 4),
    }


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_pretrained("digits8", device)
    pictures = data.digits(8, "test").to(device)
    x0, labels, schedule = pictures.floats(), pictures.labels, model.schedule

    def ledger(steps: int) -> Ledger:
        return likelihood.vlb(
            model, x0, schedule.levels(steps), labels, grey_levels=pictures.levels, seed=SEED
        )

    began = time.perf_counter()
    full = ledger(1000)
    seconds = round(time.perf_counter() - began)
    by_step = [float(f"{cost:.3e}") for cost in full.steps.mean(1).tolist()]
    result = {
        "machine": machine(),
        "seed": SEED,
        "model": "digits8",
        "pictures": len(x0),
        "grey_levels": pictures.levels,
        "seconds": seconds,
        "chains": {"1000": summary(full)} | {str(n): summary(ledger(n)) for n in CHAINS},
        "nats_by_step": by_step,  # L_{t-1} for t = 1000, ..., 2
    }
    path = Path(__file__).parent / "results" / "vlb.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for steps, row in result["chains"].items():
        print(f"{steps:>4} steps: {row['bits_per_dim']:.3f} bits/dim")
    print(f"written: {path.name}, {seconds} s for the full ledger")


if __name__ == "__main__":
    main()
