"""The archive: the same bytes for the same policy, and no damage that loads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tracer.certification.proposals import ACCEPT_ALL
from tracer.errors import ArchiveError
from tracer.learning import pool
from tracer.learning.surrogates import Part, Surrogate
from tracer.policies import archive
from tracer.policies.archive import ARRAYS, MANIFEST, Files
from tracer.policies.policy import Policy
from tracer.types import Dataset

KINDS = ["lexical", "dense", "both", "cascade"]
Edit = Callable[[dict[str, Any]], None]


def signed(files: Files, edit: Edit) -> Files:
    """The archive as another program might have written it: edited, with a digest and hashes that fit."""
    manifest = json.loads(files[MANIFEST])
    edit(manifest)
    content = {key: value for key, value in manifest.items() if key != "digest"}
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    manifest["digest"] = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    return {**files, MANIFEST: json.dumps(manifest).encode()}


def written(folder: Path, files: Files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_gives_the_same_bytes_and_the_same_decisions(
    kind: str, policies: dict[str, Policy], messages: Dataset, tmp_path: Path
) -> None:
    policy = policies[kind]
    files = archive.dump(policy)
    again = archive.load(archive.read_files(written(tmp_path / "p", files)))
    assert archive.dump(again) == files
    some = messages.take(np.arange(600, 1100))
    before, after = (p.decide(some.texts, some.dense) for p in (policy, again))
    assert before.labels == after.labels
    assert before.reasons == after.reasons
    assert np.array_equal(before.scores, after.scores)
    assert np.array_equal(before.handled, after.handled)
    assert 0 < before.coverage < 1


def test_every_field_survives(tiny_policy: Policy) -> None:
    rich = replace(
        tiny_policy,
        version="v0007",
        parent="v0006",
        probes=np.eye(3, dtype=np.float32),
        task={"teachers": ["gpt", "claude"]},
        report={"naïve": [1, None, "✓"]},
        candidate=replace(
            tiny_policy.candidate,
            rules=replace(
                tiny_policy.candidate.rules,
                always_defer=np.array([1], dtype=np.int32),
                error_ratio=np.array([0.5, 2.0]),
                class_floor=np.array([-np.inf, np.inf]),
            ),
        ),
    )
    again = archive.load(archive.dump(rich))
    for name in ("version", "parent", "created", "family", "space", "certificate", "task", "report", "embedder"):
        assert getattr(again, name) == getattr(rich, name)
    assert again.probes is not None
    assert np.array_equal(again.probes, np.eye(3))
    ours, theirs = rich.candidate.rules, again.candidate.rules
    assert theirs.always_defer.tolist() == [1]
    assert np.array_equal(theirs.error_ratio, ours.error_ratio)  # type: ignore[arg-type]
    assert np.array_equal(theirs.class_floor, ours.class_floor)  # type: ignore[arg-type]
    assert again.candidate.guard == rich.candidate.guard


def test_accept_all_and_no_novelty_floor_survive(tiny_policy: Policy) -> None:
    certificate = replace(tiny_policy.certificate, threshold=ACCEPT_ALL)
    guard = replace(tiny_policy.candidate.guard, mode="off", floor=-np.inf)
    policy = replace(tiny_policy, certificate=certificate, candidate=replace(tiny_policy.candidate, guard=guard))
    again = archive.load(archive.dump(policy))
    assert again.threshold == ACCEPT_ALL
    assert again.candidate.guard.floor == -np.inf


def test_trees_are_kept_as_onnx(tiny_policy: Policy) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype(np.float32), (np.arange(60) % 2).astype(np.int32)
    tree = next(r for r in pool.learners("full", frozenset(["dense"])) if r.family == "tree")
    part = Part("tree", "dense", tree.train(x, y, 2, None, 0), 0.5)
    policy = replace(tiny_policy, lexical=None, candidate=replace(tiny_policy.candidate, surrogate=Surrogate((part,))))
    files = archive.dump(policy)
    assert set(files) == {MANIFEST, ARRAYS, "candidate-0.onnx"}
    again = archive.load(files)
    assert archive.dump(again) == files
    assert again.decide(dense=x).scores == pytest.approx(policy.decide(dense=x).scores, abs=1e-4)
    assert again.decide(dense=x).labels == policy.decide(dense=x).labels
    for broken in (files["candidate-0.onnx"][:-9], b""):
        with pytest.raises(ArchiveError, match=r"candidate-0\.onnx was changed or cut short"):
            archive.load({**files, "candidate-0.onnx": broken})
    forged = hashlib.sha256(b"no model").hexdigest()
    with pytest.raises(ArchiveError, match="tree model cannot be loaded"):
        archive.load(
            signed(
                {**files, "candidate-0.onnx": b"no model"}, lambda m: m["files"].update({"candidate-0.onnx": forged})
            )
        )


def replaced(old: bytes, new: bytes) -> Callable[[Files], Files]:
    def damage(files: Files) -> Files:
        assert old in files[MANIFEST]
        return {**files, MANIFEST: files[MANIFEST].replace(old, new, 1)}

    return damage


def flipped(files: Files) -> Files:
    content = bytearray(files[ARRAYS])
    content[len(content) // 2] ^= 1
    return {**files, ARRAYS: bytes(content)}


def manifest(content: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, MANIFEST: content}


DAMAGE: dict[str, tuple[Callable[[Files], Files], str]] = {
    "arrays cut short": (lambda f: {**f, ARRAYS: f[ARRAYS][:-1]}, "arrays.safetensors was changed or cut short"),
    "arrays empty": (lambda f: {**f, ARRAYS: b""}, "arrays.safetensors was changed or cut short"),
    "a bit of the arrays": (flipped, "arrays.safetensors was changed or cut short"),
    "an edited threshold": (replaced(b'"threshold": 0.5', b'"threshold": 0.1'), "manifest.json was changed"),
    "an edited label": (replaced(b'"refund"', b'"refuse"'), "manifest.json was changed"),
    "an edited count": (replaced(b'"n_agreed": 79', b'"n_agreed": 80'), "manifest.json was changed"),
    "another format": (replaced(b'"tracer-policy"', b'"other-policy"'), "not a Tracer policy"),
    "another schema": (replaced(b'"schema": 1', b'"schema": 2'), "schema 2; this version of Tracer reads 1"),
    "no JSON": (manifest(b"{"), "manifest.json is not JSON"),
    "no text": (manifest(b"\xff\xfe\x00"), "manifest.json is not JSON"),
    "nothing": (manifest(b""), "manifest.json is not JSON"),
    "a list": (manifest(b"[1, 2]"), "not a Tracer policy"),
    "null": (manifest(b"null"), "not a Tracer policy"),
    "NaN": (replaced(b'"threshold": 0.5', b'"threshold": NaN'), "manifest.json"),
    "infinity": (replaced(b'"threshold": 0.5', b'"threshold": 1e999'), "manifest.json"),
    "a number of 5,000 digits": (replaced(b'"threshold": 0.5', b'"threshold": ' + b"7" * 5000), "manifest.json"),
    "deep nesting": (manifest(b"[" * 100_000), "manifest.json"),
    "a lone surrogate": (replaced(b'"refund"', b'"\\ud800"'), "manifest.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("way", ["bytes", "folder"])
def test_damage_is_refused_by_name(name: str, way: str, tiny_policy: Policy, tmp_path: Path) -> None:
    damage, message = DAMAGE[name]
    files = damage(archive.dump(tiny_policy))
    with pytest.raises(ArchiveError, match=message):
        archive.load(files if way == "bytes" else archive.read_files(written(tmp_path / "p", files)), "here")


@pytest.mark.parametrize("missing", [MANIFEST, ARRAYS])
def test_a_missing_file_is_named(missing: str, tiny_policy: Policy, tmp_path: Path) -> None:
    files = archive.dump(tiny_policy)
    folder = written(tmp_path / "p", files)
    del files[missing]
    (folder / missing).unlink()
    with pytest.raises(ArchiveError, match=f"{missing} is missing"):
        archive.load(files)
    with pytest.raises(ArchiveError, match=missing):
        archive.read_files(folder)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "..", ".", "a/b", ".hidden", "", "nul\x00byte", "x" * 300, "\ud800"]
)
def test_a_file_name_that_leaves_the_folder_or_cannot_be_is_refused(
    name: str, tiny_policy: Policy, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    files = signed(
        archive.dump(tiny_policy), lambda m: m["files"].update({name: hashlib.sha256(b"secret").hexdigest()})
    )
    with pytest.raises(ArchiveError):
        archive.load(archive.read_files(written(tmp_path / "p", files)))


def test_a_folder_without_an_archive_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no policy archive here"):
        archive.read_files(tmp_path)
    with pytest.raises(ArchiveError, match=r"here: manifest\.json is missing"):
        archive.load({}, "here")


def at(*path: str | int, value: object) -> Edit:
    def edit(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return edit


def without(key: str) -> Edit:
    def edit(manifest: dict[str, Any]) -> None:
        del manifest[key]

    return edit


FORGED: dict[str, Edit] = {
    **{f"no {key}": without(key) for key in ("files", "labels", "candidate", "certificate", "family", "embedder")},
    "files is a list": at("files", value=[ARRAYS]),
    "files is null": at("files", value=None),
    "arrays not listed": at("files", value={}),
    "labels repeat": at("labels", value=["refund", "refund"]),
    "labels are a number": at("labels", value=3),
    "fewer labels than the head has": at("labels", value=["refund"]),
    "unknown head": at("candidate", "parts", 0, "kind", value="pickle"),
    "no parts": at("candidate", "parts", value=[]),
    "a part without arrays": at("candidate", "parts", value=[{"name": "x", "block": "lexical", "kind": "mlp"}]),
    "weight is text": at("candidate", "parts", 0, "weight", value="heavy"),
    "weight is not finite": at("candidate", "parts", 0, "weight", value=float("nan")),
    "unknown block": at("candidate", "parts", 0, "block", value="sound"),
    "unknown family": at("family", value="magic"),
    "unknown novelty mode": at("candidate", "novelty", "mode", value="maybe"),
    "acceptor names missing": at("candidate", "acceptor", "names", value=["top_1"]),
    "threshold is text": at("certificate", "threshold", value="0.5"),
    "threshold is not a number": at("certificate", "threshold", value=float("nan")),
    "target above one": at("certificate", "target", value=1.5),
    "more agreed than handled": at("certificate", "n_agreed", value=81),
    "more handled than shadow": at("certificate", "n_handled", value=101),
    "no shadow traces": at("certificate", value={"n_shadow": 0}),
    "counts are floats": at("certificate", "n_agreed", value=79.0),
    "counts are negative": at("certificate", "n_agreed", value=-1),
    "an unknown certificate field": at("certificate", "extra", value=1),
    "certificate is a list": at("certificate", value=[]),
    "embedder without digest": at("embedder", value={"name": "x", "dimension": 3}),
    "embedder of no dimension": at("embedder", value={"name": "x", "dimension": 0, "digest": "y"}),
    "first stage without cut": at("first_stage", value={"parts": []}),
    "report is a number": at("report", value=3),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_signed_manifest_that_describes_no_policy_is_refused(name: str, tiny_policy: Policy) -> None:
    files = signed(archive.dump(tiny_policy), FORGED[name])
    with pytest.raises(ArchiveError, match="here"):
        archive.load(files, "here")


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_changed_byte_loads_as_another_policy(tiny_policy: Policy, data: st.DataObject) -> None:
    files = archive.dump(tiny_policy)
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = {**files, name: bytes(content)}
    assume(damaged != files)
    try:
        policy = archive.load(damaged)
    except ArchiveError:
        return
    # White space of the manifest may change: the policy is then the same, byte for byte.
    assert name == MANIFEST
    assert archive.dump(policy) == files


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_cut_file_loads(tiny_policy: Policy, data: st.DataObject) -> None:
    files = archive.dump(tiny_policy)
    name = data.draw(st.sampled_from(sorted(files)))
    cut = data.draw(st.integers(0, len(files[name]) - 1))
    with pytest.raises(ArchiveError):
        archive.load({**files, name: files[name][:cut]})
