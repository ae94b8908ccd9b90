import json
import shlex
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_audit.audit.plan import AttackPlan, DecisionPlan, DefendPlan, ModelPlan, Plan, RulePlan
from mi_audit.audit.settings import command_line, plan_from_json, plan_of, plan_to_json, resolve, select, template
from mi_audit.audit.settings_gate import named_rules, written_rule
from mi_audit.audit.settings_sources import find_project_file, from_environment, from_file, from_flags
from mi_audit.audit.settings_tables import Settings, describe, leaves, variable_of
from mi_audit.core.errors import ConfigError

TAGS = {
    "gmi": {"white-box", "gmi-gan"},
    "ppa": {"white-box", "gmi-gan"},
    "rlb-mi": {"black-box", "score"},
    "brep-mi": {"black-box", "label-only"},
}
SEEDS = ("run", "seeds")


def merged(flags=None, sets=(), *, folder, environment=None, **more):
    return resolve(flags or {}, sets, folder=folder, environment=environment or {}, **more)


def write(folder: Path, text: str, name: str = "mi-audit.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_every_layer_beats_the_one_below(tmp_path):
    write(tmp_path, "[run]\nseeds = 2\nseed = 2\nchunk = 2\nbatch_size = 2")
    named = write(tmp_path, "[run]\nseeds = 3\nseed = 3\nchunk = 3", "other.toml")
    environment = {"MI_AUDIT_SEEDS": "4", "MI_AUDIT_SEED": "4"}
    found = merged({SEEDS: "5"}, folder=tmp_path, environment=environment, config=named)
    run = found.settings.run
    assert (run.seeds, run.seed, run.chunk, run.batch_size, run.classes) == (5, 4, 3, 2, "all")
    origins = {name: origin for name, _, origin in found.rows()}
    assert origins["run.seeds"] == "command line"
    assert origins["run.seed"] == "MI_AUDIT_SEED"
    assert origins["run.chunk"] == str(named)
    assert origins["run.batch_size"] == str(tmp_path / "mi-audit.toml")
    assert origins["run.classes"] == "default"


@pytest.mark.parametrize(("text", "size"), [("auto", "auto"), ("12", 12), ("1", 1)])
def test_a_batch_size_is_a_number_or_chosen_on_the_command_line_and_in_a_file(tmp_path, text, size):
    assert merged({("run", "batch_size"): text}, folder=tmp_path).settings.run.batch_size == size
    assert merged(environment={"MI_AUDIT_BATCH_SIZE": text}, folder=tmp_path).settings.run.batch_size == size
    write(tmp_path, f"[run]\nbatch_size = {text!r}" if text == "auto" else f"[run]\nbatch_size = {text}")
    assert merged(folder=tmp_path).settings.run.batch_size == size


@pytest.mark.parametrize("text", ["0", "-1", "often", "1.5", "true", 1.5, True])
def test_other_batch_sizes_are_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="--batch-size to be auto or a whole number from 1, got"):
        merged({("run", "batch_size"): text}, folder=tmp_path)


def test_how_to_compute_reaches_the_plan_and_what_changes_results_the_command(tmp_path):
    flags = {
        ("model", "ref"): "m",
        ("run", "compile"): "on",
        ("run", "deterministic"): True,
        ("run", "batch_size"): "8",
    }
    plan = plan_of(merged(flags, folder=tmp_path), "attack", lambda: TAGS)
    assert (plan.compile, plan.deterministic, plan.batch_size) == ("on", True, 8)
    assert plan.command == "mi-audit attack m --compile on --deterministic"
    assert plan_from_json(plan_to_json(plan)) == plan
    usual = plan_of(merged({("model", "ref"): "m"}, folder=tmp_path), "attack", lambda: TAGS)
    assert (usual.compile, usual.deterministic, usual.batch_size) == ("auto", False, "auto")


def test_a_flag_beats_the_same_key_in_set(tmp_path):
    assert merged({SEEDS: "5"}, ["run.seeds=6"], folder=tmp_path).settings.run.seeds == 5


def test_defaults_are_the_defaults_of_the_plan(tmp_path):
    plan = plan_of(merged({("model", "ref"): "m.safetensors"}, folder=tmp_path), "attack", lambda: TAGS)
    assert plan == Plan(model=ModelPlan(ref="m.safetensors"), command="mi-audit attack m.safetensors")


@pytest.mark.parametrize(("value", "kept"), [("0.86", 0.86), ("1", 1.0), ("86", None), ("0", None), ("yes", None)])
def test_declared_accuracy_is_a_share(tmp_path, value, kept):
    flags = {("model", "ref"): "m", ("run", "declared_accuracy"): value}
    if kept is None:
        with pytest.raises(ConfigError, match="declared-accuracy"):
            merged(flags, folder=tmp_path)
    else:
        assert plan_of(merged(flags, folder=tmp_path), "attack", lambda: TAGS).declared_accuracy == kept


@pytest.mark.parametrize(
    ("given", "words"), [(None, ""), (True, " --positive-control"), (False, " --no-positive-control")]
)
def test_the_positive_control_is_asked_for_refused_or_left_to_the_profile(tmp_path, given, words):
    found = merged({("model", "ref"): "m", ("run", "positive_control"): given}, folder=tmp_path)
    plan = plan_of(found, "attack", lambda: TAGS)
    assert plan.positive_control is given and plan.command == f"mi-audit attack m{words}"


def test_pyproject_counts_only_with_the_table(tmp_path):
    write(tmp_path, "[project]\nname = 'x'", "pyproject.toml")
    assert find_project_file(tmp_path) is None
    write(tmp_path, "[tool.mi-audit.run]\nseeds = 7", "pyproject.toml")
    assert merged(folder=tmp_path).settings.run.seeds == 7


def test_the_search_stops_at_the_repository(tmp_path):
    inner = tmp_path / "repository" / "a" / "b"
    inner.mkdir(parents=True)
    write(tmp_path, "[run]\nseeds = 2")
    assert find_project_file(inner) is None
    (tmp_path / "repository" / ".git").mkdir()
    assert find_project_file(inner) is None
    wanted = write(tmp_path / "repository", "[run]\nseeds = 3")
    assert find_project_file(inner) == wanted


def test_outside_a_repository_parents_are_not_trusted(tmp_path):
    write(tmp_path, "[run]\nseeds = 2")
    (tmp_path / "below").mkdir()
    assert find_project_file(tmp_path / "below") is None


def test_discovery_can_be_switched_off(tmp_path):
    write(tmp_path, "[run]\nseeds = 2")
    assert merged(folder=tmp_path, discover=False).settings.run.seeds == 1


def test_the_environment_can_name_a_config_file(tmp_path):
    named = write(tmp_path, "[run]\nseeds = 2", "ci.toml")
    assert merged(folder=tmp_path, environment={"MI_AUDIT_CONFIG": str(named)}).settings.run.seeds == 2


def test_paths_in_a_file_are_relative_to_the_file(tmp_path):
    (tmp_path / "faces").mkdir()
    file = write(
        tmp_path,
        """
        [model]
        ref = "dist/face.safetensors"
        labels = "labels.txt"
        [data]
        private = "faces"
        public = "digits:5-9"
        [run]
        evaluator = "timm:resnet18"
        out = "/elsewhere/run"
        [defend]
        pretrained = "local-dir:weights"
        """,
    )
    found = merged(folder=tmp_path, config=file).settings
    assert found.model.ref == str(tmp_path / "dist/face.safetensors")
    assert found.model.labels == tmp_path / "labels.txt"
    assert (found.data.private, found.data.public) == (str(tmp_path / "faces"), "digits:5-9")
    assert (found.run.evaluator, found.run.out) == ("timm:resnet18", Path("/elsewhere/run"))
    assert found.defend.pretrained == f"local-dir:{tmp_path / 'weights'}"


@pytest.mark.parametrize("name", ["digits", "auto", "torch/cifar10", "hf-hub:org/name"])
def test_names_of_data_sets_are_no_paths(tmp_path, name):
    file = write(tmp_path, f'[data]\npublic = "{name}"')
    assert from_file(file).values["data", "public"] == name


def test_paths_stay_as_written_when_the_file_is_here(tmp_path, monkeypatch):
    write(tmp_path, '[data]\npublic = "data/public"\n[run]\nout = "runs/x"')
    monkeypatch.chdir(tmp_path)
    found = resolve(environment={}).settings
    assert (found.data.public, found.run.out) == ("data/public", Path("runs/x"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nprofle = 'quick'", "expected a key of [run] in {file}, got 'profle'; did you mean 'profile'?"),
        ("[rum]\nseed = 1", "expected a table in {file}, got 'rum'; did you mean 'run'?"),
        ("[run]\nseeds = 'three'", "expected [run] seeds in {file} to be a valid integer"),
        ("[run]\nseeds = true", "expected [run] seeds in {file} to be a number, got True"),
        ("[run]\nseeds = 0", "to be greater than or equal to 1, got 0"),
        ("[run]\nprofile = 'fast'", "to be 'quick', 'standard' or 'thorough', got 'fast'"),
        ("[[gate]]\nid = 'a'", "expected [[gate]] when in {file}, got none; add it"),
        ("[[gate]]\nid = 'a'\nwen = 'x > 1'", "expected a key of [[gate]] in {file}, got 'wen'; did you mean 'when'?"),
        ("version = 2", "expected version in {file} to be 1, got 2"),
        ("[run", "expected TOML in {file}, got: "),
    ],
)
def test_a_wrong_file_is_one_line_that_names_file_table_and_key(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        merged(folder=tmp_path)
    assert message.format(file=file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_config_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"none.toml, which does not exist"):
        merged(folder=tmp_path, config=tmp_path / "none.toml")


def test_unknown_variables_are_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"got MI_AUDIT_PROFLE; did you mean 'MI_AUDIT_PROFILE'\?"):
        from_environment({"MI_AUDIT_PROFLE": "quick"})


def test_variables_of_other_parts_and_of_other_programs_are_left_alone():
    others = {"MI_AUDIT_TEST_DATA": "x", "MI_AUDIT_CHROMIUM": "y", "MI_AUDIT_CONFIG": "z", "PATH": "p"}
    assert not from_environment(others).values


def test_the_cache_variable_is_the_cache_setting():
    assert from_environment({"MI_AUDIT_CACHE_DIR": "/c"}).values == {("run", "cache"): Path("/c")}


def test_a_wrong_variable_is_named():
    with pytest.raises(ConfigError, match="expected MI_AUDIT_SEEDS to be a valid integer"):
        from_environment({"MI_AUDIT_SEEDS": "many"})


def test_lists_and_rules_from_text():
    variables = {"MI_AUDIT_ATTACKS": "gmi, ppa", "MI_AUDIT_MEAN": "0.5,0.25,0", "MI_AUDIT_FAIL_ON": "a > 1; b < 2"}
    values = from_environment(variables).values
    assert values["run", "attacks"] == ("gmi", "ppa")
    assert values["model", "mean"] == (0.5, 0.25, 0.0)
    assert values["gate",] == ({"id": "rule-1", "when": "a > 1"}, {"id": "rule-2", "when": "b < 2"})


def test_every_setting_has_its_own_variable_and_a_description():
    names = [variable_of(key) for key in leaves()]
    assert len(set(names)) == len(names)
    assert all(describe(key) for key in leaves())


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("attacks.gmi.steps=300", ("attacks", "gmi", "steps"), 300),
        ("attacks.ppa.gentle=[0.8, 1.0]", ("attacks", "ppa", "gentle"), [0.8, 1.0]),
        ("priors.gmi-gan.objective=light", ("priors", "gmi-gan", "objective"), "light"),
        ("defend.settings.freeze=none", ("defend", "settings", "freeze"), "none"),
        ("tldmi.freeze=none", ("defend", "settings", "tldmi", "freeze"), "none"),
        ("model.model_kwargs.width=2", ("model", "model_kwargs", "width"), 2),
        ("run.classes=5", ("run", "classes"), "5"),
    ],
)
def test_set_reaches_every_table(text, key, value):
    assert from_flags({}, [text]).values == {key: value}


@pytest.mark.parametrize("text", ["steps", "steps=3", "=3"])
def test_a_malformed_set_is_refused(text):
    with pytest.raises(ConfigError, match="expected --set TABLE"):
        from_flags({}, [text])


def test_set_of_an_unknown_key_is_refused():
    with pytest.raises(ConfigError, match=r"a key of \[run\] in the command line, got 'profle'"):
        from_flags({}, ["run.profle=x"])


@pytest.mark.parametrize(
    ("terms", "names"),
    [
        (("ppa", "gmi", "ppa"), ("ppa", "gmi")),
        (("all",), ("gmi", "ppa", "rlb-mi", "brep-mi")),
        (("-gmi",), ("ppa", "rlb-mi", "brep-mi")),
        (("tag:black-box",), ("rlb-mi", "brep-mi")),
        (("all", "-tag:white-box", "-brep-mi"), ("rlb-mi",)),
        (("brep-mi", "tag:gmi-gan", "-ppa"), ("brep-mi", "gmi")),
    ],
)
def test_selection_of_attacks(terms, names):
    assert select(terms, TAGS) == names


def test_unknown_and_empty_selections_are_refused():
    with pytest.raises(ConfigError, match=r"got 'gmy'; did you mean 'gmi'\?"):
        select(("gmy",), TAGS)
    with pytest.raises(ConfigError, match=r"got 'tag:whitebox'; did you mean 'tag:white-box'\?"):
        select(("tag:whitebox",), TAGS)
    with pytest.raises(ConfigError, match="expected at least one attack"):
        select(("gmi", "-gmi"), TAGS)


def test_a_table_of_an_unknown_attack_is_refused(tmp_path):
    found = merged({("model", "ref"): "m"}, ["attacks.gmj.steps=3"], folder=tmp_path)
    with pytest.raises(ConfigError, match=r"got 'gmj'; did you mean 'gmi'\?"):
        plan_of(found, "attack", lambda: TAGS)


def test_without_a_model_the_attacks_are_not_even_looked_up(tmp_path):
    def never():
        raise AssertionError

    with pytest.raises(ConfigError, match="expected a model to audit, got none"):
        plan_of(merged(folder=tmp_path), "attack", never)


def full_plan(tmp_path):
    flags = {
        ("model", "ref"): "m.safetensors",
        ("model", "mean"): "0.5,0.5,0.5",
        ("data", "convert_color"): True,
        ("run", "attacks"): "ppa,rlb-mi",
        ("run", "out"): Path("runs/x"),
        ("run", "device"): "cpu",
        ("defend", "freeze"): "80%",
        ("defend", "save"): Path("safe.safetensors"),
        ("gate",): ["attack_acc1 > 0.1"],
        ("baseline", "file"): Path("main.json"),
        ("baseline", "max_regression"): "0.02",
    }
    sets = ["attacks.ppa.steps=9", "priors.gmi-gan.steps=5", "defend.settings.weight=0.5"]
    return merged(flags, sets, folder=tmp_path)


def test_a_full_plan(tmp_path):
    plan = plan_of(full_plan(tmp_path), "defend", lambda: TAGS, allow_pickle=True, fresh=True)
    assert plan.model == ModelPlan(ref="m.safetensors", mean=(0.5, 0.5, 0.5), allow_pickle=True)
    assert plan.attacks == (AttackPlan(name="ppa", settings={"steps": 9}), AttackPlan(name="rlb-mi"))
    assert plan.rules == (RulePlan(id="rule-1", when="attack_acc1 > 0.1"),)
    assert plan.defend == DefendPlan(freeze="80%", save=Path("safe.safetensors"), settings={"weight": 0.5})
    assert (plan.baseline, plan.max_regression, plan.fresh) == (Path("main.json"), 0.02, True)
    assert plan.prior_settings == {"gmi-gan": {"steps": 5}}


def test_the_command_line_of_a_plan_leaves_out_where_it_ran(tmp_path):
    assert command_line(full_plan(tmp_path), "defend") == (
        "mi-audit defend m.safetensors --set attacks.ppa.steps=9 --baseline main.json --max-regression 0.02 "
        "--convert-color --freeze 80% --set defend.settings.weight=0.5 --fail-on 'attack_acc1 > 0.1' "
        "--mean 0.5,0.5,0.5 --set priors.gmi-gan.steps=5 --attacks ppa,rlb-mi"
    )


def test_attack_commands_do_not_mention_the_defense(tmp_path):
    assert "freeze" not in command_line(full_plan(tmp_path), "attack")


def test_attack_commands_say_how_a_counterfactual_target_is_trained(tmp_path):
    flags = {("model", "ref"): "m", ("run", "controls"): "counterfactual"}
    resolved = merged(flags, ["defend.epochs=3", "defend.freeze=80%", "defend.augment=none"], folder=tmp_path)
    line = command_line(resolved, "attack")
    assert line == "mi-audit attack m --set defend.augment=none --set defend.epochs=3 --controls counterfactual"
    assert "--epochs 3" in command_line(resolved, "defend")
    usual = merged({("model", "ref"): "m"}, ["defend.epochs=3"], folder=tmp_path)
    assert command_line(usual, "attack") == "mi-audit attack m"


def test_plans_survive_json(tmp_path):
    plan = plan_of(full_plan(tmp_path), "defend", lambda: TAGS)
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


@given(seed=st.integers(0, 2**63), classes=st.text(max_size=8), lr=st.floats(1e-6, 1, allow_nan=False))
def test_any_plan_survives_json(seed, classes, lr):
    plan = Plan(model=ModelPlan(ref="m"), seed=seed, classes=classes, defend=DefendPlan(lr=lr))
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


def test_a_plan_from_before_auto_was_a_batch_size_is_read():
    plan = Plan(model=ModelPlan(ref="m"))
    assert plan_from_json(plan_to_json(plan) | {"batch_size": None}) == plan
    assert plan_from_json(plan_to_json(plan) | {"batch_size": 7}).batch_size == 7


def test_a_damaged_plan_is_refused():
    with pytest.raises(ConfigError, match=r"expected a plan of this version, got model"):
        plan_from_json({"private": "x"})


def test_the_template_is_the_defaults():
    assert Settings.model_validate(tomllib.loads(template())) == Settings()


def test_every_line_of_the_template_can_be_uncommented():
    head, tables = template().split("\n[model]", 1)
    tables = "[model]" + tables
    lines = [line.removeprefix("# ") for line in tables.splitlines()]
    given_ = Settings.model_validate(tomllib.loads("\n".join([head, *lines])))
    for key, default in leaves().items():
        if default not in (None, ()):
            assert getattr(getattr(given_, key[0]), key[1]) == default
    assert given_.gate[0].when == "attack_acc1 > 0.10"


def test_the_schema_accepts_the_template_and_refuses_unknown_keys():
    schema = Settings.model_json_schema()
    jsonschema.validate(tomllib.loads(template()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"run": {"profle": "quick"}}, schema)


def test_settings_need_no_torch():
    code = "import sys, mi_audit.audit.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


WAIVER = """
[[waivers]]
id = "MI001"
model_sha256 = "{sha}"
expires = 2027-01-31
reason = "accepted by J. Doe"
"""


def deciding(tmp_path, **flags):
    (tmp_path / "mi-audit.toml").write_text(WAIVER.format(sha="ab" * 32))
    chosen = {("decision", name): value for name, value in flags.items()}
    return merged({("model", "ref"): "m.safetensors", **chosen}, [], folder=tmp_path)


def test_how_exposure_is_decided_becomes_part_of_the_plan(tmp_path):
    resolved = deciding(tmp_path, policy="audit-v1", tau="0.05", sequential=True)
    plan = plan_of(resolved, "attack", lambda: TAGS)
    assert plan.decision == DecisionPlan(policy="audit-v1", tau=0.05, alpha=0.05, sequential=True)
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan
    line = command_line(resolved, "attack")
    assert "--policy audit-v1 --sequential --threshold 0.05" in line and "waiver" not in line


def test_waivers_come_from_files_only_and_remember_which(tmp_path):
    (waiver,) = plan_of(deciding(tmp_path), "attack", lambda: TAGS).waivers
    assert (waiver.id, waiver.expires, waiver.source) == ("MI001", date(2027, 1, 31), str(tmp_path / "mi-audit.toml"))
    with pytest.raises(ConfigError):
        merged({}, ["waivers.id=MI001"], folder=tmp_path)
    with pytest.raises(ConfigError, match="MI_AUDIT_WAIVERS"):
        resolve({}, environment={"MI_AUDIT_WAIVERS": "MI001"}, folder=tmp_path)


@pytest.mark.parametrize("option", [{"tau": "0.2"}, {"alpha": "0.1"}, {"sequential": True}])
def test_what_only_the_policy_heeds_needs_the_policy(tmp_path, option):
    with pytest.raises(ConfigError, match="--policy audit-v1"):
        plan_of(deciding(tmp_path, **option), "attack", lambda: TAGS)
    with pytest.raises(ConfigError, match="--threshold"):
        deciding(tmp_path, policy="audit-v1", tau="1.0")


def test_the_printed_command_keeps_the_names_of_rules_and_drops_what_no_policy_heeds(tmp_path):
    rules = '[[gate]]\nid = "MI001"\nwhen = "attack_acc1 > 0.1"\n[[gate]]\nid = "rule-2"\nwhen = "fid[a:b] < 3"\n'
    write(tmp_path, rules + "[decision]\ntau = 0.05\nalpha = 0.01\nsequential = true")
    found = merged({("model", "ref"): "m"}, folder=tmp_path)
    line = command_line(found, "attack")
    assert line == "mi-audit attack m --fail-on 'MI001: attack_acc1 > 0.1' --fail-on 'fid[a:b] < 3'"
    words = shlex.split(line)
    typed = {("model", "ref"): "m", ("gate",): [words[4], words[6]]}
    again = plan_of(merged(typed, folder=tmp_path, discover=False), "attack", lambda: TAGS)
    assert again.rules == plan_of(found, "attack", lambda: TAGS).rules
    assert again.rules[0] == RulePlan(id="MI001", when="attack_acc1 > 0.1")


@given(name=st.text(max_size=12), place=st.integers(1, 3))
def test_any_rule_that_is_printed_with_its_name_is_read_back(name, place):
    when = "attack_acc1[control:random] > 0.1"
    written = written_rule(place, name, when)
    (rule,) = named_rules([written])
    assert rule["when"] == when and (written == when or rule["id"] == name)


def test_paths_of_a_project_file_are_said_as_seen_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    (tmp_path / "sub").mkdir()
    text = '[model]\nref = "dist/m.safetensors"\n[data]\nprivate = "sub/faces"\npublic = "local-dir:other"\n'
    write(tmp_path, text + '[run]\nout = "/elsewhere/run"\n[baseline]\nfile = "main.json"')
    monkeypatch.chdir(tmp_path / "sub")
    found = merged(folder=tmp_path / "sub")
    assert str(tmp_path) not in command_line(found, "attack")
    settings = found.settings
    assert (settings.model.ref, settings.data.private) == ("../dist/m.safetensors", "faces")
    assert (settings.data.public, settings.baseline.file) == ("local-dir:../other", Path("../main.json"))
    assert settings.run.out == Path("/elsewhere/run")


def test_paths_of_a_named_file_below_the_working_directory_are_relative(tmp_path, monkeypatch):
    (tmp_path / "ci").mkdir()
    named = write(tmp_path / "ci", f'[model]\nref = "m/x"\n[data]\nprivate = "{tmp_path / "faces"}"', "ci.toml")
    monkeypatch.chdir(tmp_path)
    found = merged(folder=tmp_path, config=named).settings
    assert (found.model.ref, found.data.private) == ("ci/m/x", "faces")
