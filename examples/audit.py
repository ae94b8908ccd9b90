"""Audit a model from Python: python examples/audit.py model.safetensors data/private data/public"""

import argparse
import sys

from mi_audit import run_attack
from mi_audit.audit.gate import exit_code
from mi_audit.audit.plan import AttackPlan, ModelPlan, Plan, RulePlan

parser = argparse.ArgumentParser(description=__doc__)
for name in ("model", "private", "public"):
    parser.add_argument(name)
arguments = parser.parse_args()

report = run_attack(
    Plan(
        model=ModelPlan(ref=arguments.model),
        private=arguments.private,
        public=arguments.public,
        attacks=(AttackPlan(name="ppa", settings={"steps": 100}),),
        profile="quick",
        rules=(RulePlan(id="MI001", when="attack_acc1 > 0.10"),),
    )
)
for attack in report.attacks:
    for measured in attack.measurements:
        interval = measured.interval
        around = f"[{interval.low:.3g}, {interval.high:.3g}]" if interval else f"({measured.reason})"
        print(attack.name, measured.name, measured.value, around)
sys.exit(exit_code(report.verdict, sum(len(attack.failed) for attack in report.attacks)))
