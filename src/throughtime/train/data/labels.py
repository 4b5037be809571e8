"""Sequences with labels out of a table: rows of characters, rows grouped to sequences, or one long series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from throughtime.errors import DataError
from throughtime.train.data.batch import Source
from throughtime.train.data.prepared import Prepared
from throughtime.train.data.scaling import Scaling
from throughtime.train.data.schema import LabelSchema
from throughtime.train.data.sequences import Sequences
from throughtime.train.data.streams import Streams
from throughtime.train.data.table import Table, read_table
from throughtime.train.data.vocabulary import Vocabulary
from throughtime.train.kinds import LabelConfig


def prepare(config: LabelConfig, schema: LabelSchema | None) -> Prepared:
    """The data of a run. Sequences are split at random (by the seed), one long series is split in time."""
    table = read_table(Path(config.table), splits=bool(config.characters or config.sequence))
    labels = _labels(table, config)
    if config.characters:
        texts = _texts(table, config.characters)
        known = schema.vocabulary if schema else Vocabulary("characters", "".join(sorted(set("".join(texts)))))
        names = schema.labels if schema else _names(table, config, labels)
        schema = LabelSchema(known, None, names, True)
        return _split(config, table, schema, list(range(len(texts))), *_encoded(table, schema, texts, labels))
    columns = _columns(table, config)
    values, groups = table.numbers(columns), _groups(table, config)
    names = schema.labels if schema else _names(table, config, labels)
    if not config.sequence:
        return _series(config, table, schema, columns, values, names, labels)
    firsts = [int(rows[0]) for rows in groups]
    members = _members(config, table, firsts)
    if schema is None:
        rows = torch.cat([groups[n] for n in members["train"].tolist()])
        schema = LabelSchema(None, Scaling.fit(columns, values[rows]), names, config.per == "sequence")
    return _split(config, table, schema, firsts, *_grouped(table, config, schema, values, groups, labels))


def whole(table: Table, schema: LabelSchema, config: LabelConfig) -> Source:
    """A whole other table, to evaluate a model on; raises `DataError` for labels or characters it does not know."""
    labels = _labels(table, config)
    if config.characters:
        inputs, targets = _encoded(table, schema, _texts(table, config.characters), labels)
        return Sequences(inputs, targets, config.batch, config.window, at_end=True)
    assert schema.inputs is not None
    values = table.numbers(schema.inputs.columns)
    if not config.sequence:
        return Streams(schema.inputs(values), _numbers(table, schema.labels, labels), 1, config.window, tail=True)
    inputs, targets = _grouped(table, config, schema, values, _groups(table, config), labels)
    return Sequences(inputs, targets, config.batch, config.window, at_end=schema.at_end)


def _labels(table: Table, config: LabelConfig) -> list[str]:
    labels = [cell.strip() for cell in table.text(config.label)]
    if "" in labels:
        raise DataError(f"{table.path}: column {config.label!r} is empty in row {labels.index('') + 1}; label each row")
    return labels


def _names(table: Table, config: LabelConfig, labels: list[str]) -> tuple[str, ...]:
    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        raise DataError(f"{table.path}: column {config.label!r} has one label, {names[0]!r}; there is nothing to learn")
    return names


def _texts(table: Table, column: str) -> list[str]:
    texts = table.text(column)
    if "" in texts:
        raise DataError(f"{table.path}: column {column!r} is empty in row {texts.index('') + 1}; a sequence has a step")
    return texts


def _columns(table: Table, config: LabelConfig) -> list[str]:
    columns = table.chosen(config.inputs, [config.label, config.sequence])
    if not columns:
        raise DataError(
            f"{table.path} has no column of numbers to learn from; name columns with --inputs, or one of text with "
            "--characters"
        )
    if config.label in columns:
        raise DataError(f"the label {config.label!r} is among the inputs; leave it out of --inputs")
    return columns


def _groups(table: Table, config: LabelConfig) -> list[Tensor]:
    """The rows of each sequence, in their order; sequences in the order of their first rows."""
    if not config.sequence:
        return []
    rows: dict[tuple[str, str], list[int]] = {}
    parts = table.parts or {"": range(len(table))}
    for part, within in parts.items():  # a name that comes again in another part is another sequence
        for row in within:
            rows.setdefault((part, table.text(config.sequence)[row].strip()), []).append(row)
    return [torch.tensor(members) for members in rows.values()]


def _numbers(table: Table, names: Sequence[str], labels: Sequence[str]) -> Tensor:
    number = {name: i for i, name in enumerate(names)}
    if unknown := sorted(set(labels) - set(number)):
        raise DataError(f"{table.path} has the label {unknown[0]!r}, which the model was not trained on")
    return torch.tensor([number[label] for label in labels])


def _encoded(
    table: Table, schema: LabelSchema, texts: Sequence[str], labels: Sequence[str]
) -> tuple[list[Tensor], list[Tensor]]:
    assert schema.vocabulary is not None
    numbers = _numbers(table, schema.labels, labels)
    return [schema.vocabulary.encode(text) for text in texts], list(numbers.split(1))


def _grouped(
    table: Table, config: LabelConfig, schema: LabelSchema, values: Tensor, groups: list[Tensor], labels: list[str]
) -> tuple[list[Tensor], list[Tensor]]:
    assert schema.inputs is not None
    scaled, numbers = schema.inputs(values), _numbers(table, schema.labels, labels)
    targets = []
    for rows in groups:
        own = numbers[rows]
        if schema.at_end and len(own.unique()) > 1:
            other = int((own != own[0]).nonzero()[0])
            raise DataError(
                f"{table.path}: sequence {table.text(config.sequence)[int(rows[0])]!r} has the labels "
                f"{labels[int(rows[0])]!r} and {labels[int(rows[other])]!r} (row {int(rows[other]) + 1}); give it one, "
                "or label each step with --per step"
            )
        targets.append(own[:1] if schema.at_end else own)
    return [scaled[rows] for rows in groups], targets


def _members(config: LabelConfig, table: Table, firsts: Sequence[int]) -> dict[str, Tensor]:
    """Which sequences, by their first rows, are in which part: those of the table itself, the others by the seed."""
    own = {part: [n for n, row in enumerate(firsts) if row in rows] for part, rows in table.parts.items()}
    free = torch.tensor(own["train"] if own else range(len(firsts)), dtype=torch.long)
    count = len(free)
    order = free[torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))]
    test = count - ("test" not in own) * round(count * config.test_fraction)
    split = test - ("valid" not in own) * round(count * config.valid_fraction)
    drawn = {"train": order[:split], "valid": order[split:test], "test": order[test:]}
    return {**drawn, **{part: torch.tensor(members) for part, members in own.items() if part != "train"}}


def _split(
    config: LabelConfig,
    table: Table,
    schema: LabelSchema,
    firsts: Sequence[int],
    inputs: list[Tensor],
    targets: list[Tensor],
) -> Prepared:
    members = _members(config, table, firsts)
    wanted = {"train": 1.0, "valid": config.valid_fraction, "test": config.test_fraction}
    sources: dict[str, Sequences] = {}
    for part in (name for name, fraction in wanted.items() if fraction or name in table.parts):
        if not len(members[part]):
            raise DataError(
                f"{table.path} has {len(inputs)} sequences, which leaves none for the part {part!r}; give more, or "
                "change --valid-fraction and --test-fraction"
            )
        chosen = members[part].tolist()
        sources[part] = Sequences(
            [inputs[n] for n in chosen],
            [targets[n] for n in chosen],
            config.batch,
            config.window,
            seed=config.seed if part == "train" else None,
            at_end=schema.at_end,
        )
    references = {part: _commonest([targets[n] for n in members[part].tolist()]) for part in sources if part != "train"}
    return Prepared(schema, sources["train"], sources.get("valid"), sources.get("test"), table.sha256, references)


def _commonest(targets: Sequence[Tensor]) -> dict[str, float]:
    counts = Counter(torch.cat(list(targets)).tolist())
    return {"accuracy of the commonest label": counts.most_common(1)[0][1] / counts.total()}


def _series(
    config: LabelConfig,
    table: Table,
    schema: LabelSchema | None,
    columns: list[str],
    values: Tensor,
    names: tuple[str, ...],
    labels: list[str],
) -> Prepared:
    n = len(values)
    test = n - round(n * config.test_fraction)
    split = test - round(n * config.valid_fraction)
    if split < config.batch * config.window:
        raise DataError(
            f"{table.path} is too short: {split} rows to train on, and one window of {config.window} steps for each of "
            f"{config.batch} streams needs {config.batch * config.window}; lower --batch or --window"
        )
    schema = schema or LabelSchema(None, Scaling.fit(columns, values[:split]), names, False)
    assert schema.inputs is not None
    inputs, targets = schema.inputs(values), _numbers(table, schema.labels, labels)
    held: dict[str, Streams] = {}
    for part, begin, end in (("valid", split, test), ("test", test, n)):
        if end > begin:
            held[part] = Streams(inputs[begin:end], targets[begin:end], 1, config.window, tail=True)
    references = {part: _commonest([s.targets.flatten()]) for part, s in held.items()}
    train = Streams(inputs[:split], targets[:split], config.batch, config.window)
    return Prepared(schema, train, held.get("valid"), held.get("test"), table.sha256, references)
