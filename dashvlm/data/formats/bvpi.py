"""BVPI, street pictures described for blind pedestrians (adityaBS/roadscene-vlm-for-visually-impaired).

Read from the captions CSV (``image_path,target,split``) with the annotation CSV (24 columns), from the
annotation form's JSON, or from SFT and DPO rows as JSON lines. From the CSVs the SFT and DPO rows are
built by the published rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dashvlm.config.imports import configurable
from dashvlm.data.formats.bvpi_build import SPLITS, csv_files, joined, sidewalk_side
from dashvlm.data.rows import Row
from dashvlm.data.sampling import stable_uniform
from dashvlm.data.textfiles import csv_rows, json_file, json_lines
from dashvlm.errors import DataError
from dashvlm.text.annotation_form import VEGETATION, json_annotation
from dashvlm.text.navigation import (
    CAPTION_PROMPT,
    NAVIGATION_PROMPT,
    NOUNS,
    OBJECTS,
    PROMPT,
    Truth,
    contradictions,
    parse_fields,
    position,
    segment,
    sides_of,
    stated_objects,
)


@configurable("importer")
def rows(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row a picture.

    Args:
        root: folder with the files; pictures are named relative to it or to ``options.images``.
        options: ``file``: a ``.jsonl`` of SFT or DPO rows, or a ``.json`` of the annotation form, instead of
            the CSVs; ``images``: folder of the pictures below the root; ``group_by``: ``image`` or ``block``
            (pictures with neighbouring numbers, ``block_size`` each, 80/10/10 by block);
            ``consistent_only``: leave out training rows whose caption contradicts the annotation;
            ``clip_scores`` and ``min_clip_score``: a CSV
            ``image,score`` and the least similarity of training rows; ``caption_share``,
            ``navigation_share`` and ``annotations_share``: training rows that teach the free caption, teach the
            navigation cue, or bring the annotation and teach description and cue;
            ``split``: of all rows, whatever the file says.

    Raises:
        DataError: if files or columns are missing.
    """
    clip_scores = _clip_scores(root, options)
    for row in _rows(root, options):
        truth, extra = row.pop("truth", None), row.setdefault("extra", {})
        if options.get("split"):
            row["split"] = options["split"]
        name = Path(row["video"] or row["clip_id"]).name if isinstance(row.get("video"), str) else row["clip_id"]
        row["group"] = Path(name).stem
        if options.get("group_by") == "block":  # the published split is by picture, so blocks have their own
            row["group"] = block_of(name, int(options.get("block_size") or 25))
            draw = stable_uniform(0, "block", row["group"])
            row["split"] = "train" if draw < 0.8 else "val" if draw < 0.9 else "test"
        if truth is not None:
            extra["navigation"] = truth.to_dict()
            wrong = contradictions(truth, extra.get("caption", ""))
            if wrong:
                extra["contradictions"] = wrong
                if options.get("consistent_only") and row.get("split") == "train":
                    row["problem"] = f"data.options.consistent_only: {'; '.join(wrong)}"
        if clip_scores is not None and row.get("split") == "train":
            score = clip_scores.get(name)
            if score is None or score < float(options["min_clip_score"]):
                found = "no score" if score is None else f"{score:.3f}"
                row["problem"] = f"CLIP similarity {found}, data.options.min_clip_score={options['min_clip_score']}"
        images = str(options.get("images") or "")
        if images and row.get("video"):
            row["video"] = f"{images.rstrip('/')}/{row['video']}"
        if row.get("split") == "train" and not row.get("problem"):
            _mix(row, truth, options)
        yield row


def _mix(row: Row, truth: Truth | None, options: Mapping[str, Any]) -> None:
    """Let shares of the training rows teach the free caption or the cue, or bring the annotation in the prompt."""
    extra, name = row["extra"], str(row["clip_id"])
    draw, captions = stable_uniform(0, "caption share", name), float(options.get("caption_share") or 0.0)
    if draw < captions:
        extra["style"], row["question"] = "caption", CAPTION_PROMPT
    elif truth and draw < captions + float(options.get("navigation_share") or 0.0):
        extra["style"], row["question"] = "cue", NAVIGATION_PROMPT
    if truth and stable_uniform(0, "annotation share", name) < float(options.get("annotations_share") or 0.0):
        asked, form = row.get("question") or PROMPT, json_annotation(Path(name).name, truth)
        row["question"] = f"Using road annotations: {form}, generate caption and cue. {asked}"
        extra |= {"annotation_in_prompt": True, "with_cue": True}


def _rows(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    file = options.get("file")
    if not file and not list(root.glob("*.csv")) + list(root.glob("data/*.csv")):
        named = [(s, p) for w, s in SPLITS.items() for p in (root / f"{w}.json", root / "data" / f"{w}.json")]
        named = [(s, p) for s, p in named if p.is_file()]
        for split, path in named:  # {image, caption} lists, a file a split
            yield from ({**r, "split": split} for r in _from_form(path, options.get("encoding")))
        if named:
            return
    if file and str(file).endswith(".jsonl"):
        yield from _from_lines(_existing(root / str(file)), options.get("encoding"))
    elif file:
        yield from _from_form(_existing(root / str(file)), options.get("encoding"))
    else:
        captions, annotations = csv_files(root)
        for item in joined(captions, annotations, options.get("encoding")):
            yield caption_row(item)


def block_of(name: str, size: int) -> str:
    """Return the group of pictures that a numbered name belongs to; neighbours may be one walk.

    Example:
        >>> block_of("0130.jpg", 25), block_of("image_007.jpg", 25), block_of("-4jzRz.jpg", 25)
        ('0_5', 'image_0', '-4jzRz')
    """
    found = re.fullmatch(r"(\D*?)_?(\d{2,})", Path(name).stem)
    return f"{found.group(1) or '0'}_{int(found.group(2)) // size}" if found else Path(name).stem


def caption_row(item: Mapping[str, Any]) -> Row:
    """The row of a caption with its annotation, see :func:`dashvlm.data.formats.bvpi_build.joined`."""
    row: Row = {"clip_id": str(item["image"]), "video": str(item["image"]), "split": item["split"]}
    if item.get("problem"):
        return {"clip_id": str(item["image"]), "problem": item["problem"]}
    if not item["target"]:
        return {**row, "problem": "no caption"}
    extra = {"caption": item["target"]}
    if item["truth"] is None:
        extra["unannotated"] = "no annotation of this picture"
    return {**row, "truth": item["truth"], "extra": extra}


def _from_lines(path: Path, encoding: str | None) -> Iterator[Row]:
    """Rows ``image, prompt, response`` or ``image, prompt, chosen, rejected``; the split is in the file's name."""
    split = next((SPLITS[w] for w in reversed(re.split(r"[_\W]+", path.stem)) if w in SPLITS), None)
    for number, item, wrong in json_lines(path, encoding):
        row: Row = {"clip_id": f"{path.name}:{number}", "video": "", **({"split": split} if split else {})}
        if wrong:
            yield {**row, "problem": wrong}
            continue
        text = item.get("response") or item.get("chosen") if isinstance(item, Mapping) else None
        if not isinstance(text, str) or not isinstance(item.get("image"), str):
            yield {**row, "problem": "no image, or neither response nor chosen"}
            continue
        extra = {"caption": segment(text, "Context") or text, "response": text}
        if isinstance(item.get("rejected"), str):
            extra |= {"chosen": text, "rejected": item["rejected"]}
        asked = item.get("prompt") if isinstance(item.get("prompt"), str) else None
        yield {**row, "clip_id": item["image"], "video": item["image"], "question": asked,
               "truth": truth_of_text(text), "extra": extra}  # fmt: skip


def truth_of_text(text: str) -> Truth | None:
    """Read a structured description back; None if it lacks a mandatory field."""
    fields = parse_fields(text)
    if not {"sidewalk_pos", "road_pos"} <= set(fields):
        return None
    near, far = (
        {name: stated_objects(segment(text, part) or "", NOUNS[name]) for name in OBJECTS} for part in ("Nearby", "Far")
    )
    return Truth(fields["sidewalk_pos"], fields["road_pos"], {k: v for k, v in near.items() if v},
                 {k: v for k, v in far.items() if v})  # fmt: skip


def _from_form(path: Path, encoding: str | None) -> Iterator[Row]:
    """The annotation form's JSON, or a list of ``{image, caption}``.

    The form's objects have ``image``, positions, and objects on and beside the way.
    """
    items = json_file(path, encoding)
    for number, item in enumerate(items if isinstance(items, list) else [items]):
        row: Row = {"clip_id": f"{path.name}[{number}]", "video": ""}
        if not isinstance(item, Mapping) or not isinstance(item.get("image"), str):
            yield {**row, "problem": "no image"}
            continue
        row |= {"clip_id": item["image"], "video": item["image"]}
        split = {"split": SPLITS[str(item["split"])]} if str(item.get("split")) in SPLITS else {}
        caption = item.get("caption") or item.get("target")
        if "sidewalk_pos" not in item:  # {image, caption}
            good = isinstance(caption, str) and caption.strip()
            told = {"extra": {"caption": good}} if good else {"problem": "no caption, and missing sidewalk_pos"}
            yield {**row, **split, **told}
            continue
        needed = ("sidewalk_pos", "road_pos", "object_present", "object_present_outside")
        missing = [k for k in needed if k not in item]
        if missing:
            yield {**row, "problem": f"missing {', '.join(missing)}"}
            continue
        on = item.get("objects_on_sidewalk") if item["object_present"] == "Yes" else {}
        beside = item.get("objects_outside_sidewalk") if item["object_present_outside"] == "Yes" else {}
        truth = Truth(
            sidewalk_side(item["sidewalk_pos"]), position(item["road_pos"]), _objects(on), _objects(beside),
            _objects(on, VEGETATION), _objects(beside, VEGETATION),
        )  # fmt: skip
        yield {
            **row,
            **split,
            "truth": truth,
            "extra": {"caption": str(item.get("caption") or item.get("target") or "")},
        }


def _objects(node: Any, names: Sequence[str] = OBJECTS) -> dict[str, tuple[str, ...]]:
    """Object -> sides; a value is a word or a list of words."""
    found = {}
    for name in names:
        value = node.get(name) if isinstance(node, Mapping) else None
        sides = sides_of("-".join(map(str, value)) if isinstance(value, list) else value)
        if sides:
            found[name] = sides
    return found


def _clip_scores(root: Path, options: Mapping[str, Any]) -> dict[str, float] | None:
    if not options.get("clip_scores"):
        return None
    path, found = _existing(root / str(options["clip_scores"])), dict[str, float]()
    for line, cells in csv_rows(path, ("image", "score"), lambda c: "." in c["image"]):
        try:
            if isinstance(cells, str):
                raise ValueError(cells)
            found[Path(cells["image"]).name] = float(cells["score"])
        except ValueError as error:
            raise DataError(
                "data.options.clip_scores is not a table of scores", got=f"line {line}: {error}",
                do="write the columns image,score",
            ) from error  # fmt: skip
    return found


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path} does not exist", do="name a file below data.root")
    return path
