"""Leakage and accuracy of handwritten digits at several freeze points: python examples/freeze_curve.py 40% 60% 80%"""

import sys
from dataclasses import replace
from pathlib import Path

from mi_audit import run_defense
from mi_audit.audit.demo import demo_plan
from mi_audit.audit.plan import DefendPlan

print("freeze  measurement                before   after    meaning")
for freeze in sys.argv[1:] or ["40%", "60%", "80%"]:
    out = Path("runs") / f"freeze-{freeze.strip('%')}"
    plan = demo_plan(out, seed=0, cache=None, seeds=1)
    comparison = run_defense(replace(plan, defend=DefendPlan(method="tldmi", freeze=freeze)))
    for change in comparison.changes:
        if change.name in ("accuracy", "attack_acc1"):
            before, after = change.before.value, change.after.value
            print(f"{freeze:7} {change.attack + ' ' + change.name:26} {before!s:8.5} {after!s:8.5} {change.meaning}")
