"""The batch APIs of the fake provider: OpenAI's files and batches, and Anthropic's message batches.

What a batch is to answer is made when it is taken in, and counted then: as much as a real one may bill at most. How
long it takes is told by its replies: `Job(reply, queued=3)` is there at the fourth look.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, Literal

from agentflow.testing.provider_jobs import Job, Refusal
from agentflow.testing.wire import Json, anthropic_messages

Fate = Literal["succeeded", "errored", "canceled", "expired"]


@dataclass
class Asked:
    """One request of a batch; `answer` is what it is going to have, `None` where nothing was made."""

    custom_id: str
    plan: Job
    answer: Json | None = None
    refusal: Json | None = None
    """The error that its body is answered with."""
    was_cancelled: bool = False

    @property
    def fate(self) -> Fate:
        if self.was_cancelled:
            return "canceled"
        if self.plan.expires:
            return "expired"
        return "succeeded" if self.answer is not None else "errored"


@dataclass
class KeptBatch:
    """A batch as it is kept; each look at it is a step on its way."""

    id: str
    asked: Sequence[Asked]
    created_at: float
    told: Json = field(default_factory=dict)
    """What OpenAI's object repeats of the request."""
    looks: int = 0
    has_ended: bool = False
    is_cancelled: bool = False

    def look(self) -> None:
        self.looks += 1
        queued = [item.plan.queued for item in self.asked]
        if self.is_cancelled or all(most is not None and self.looks > most for most in queued):
            self.has_ended = True

    def cancel(self) -> None:
        """What is not answered yet never will be."""
        if not self.has_ended:
            self.is_cancelled = True
            for item in self.asked:
                item.was_cancelled = True

    def count(self, *fates: Fate) -> int:
        return sum(item.fate in fates for item in self.asked) if self.has_ended else 0


class Batches:
    """The files and batches of one server. `now` is its clock, in seconds: a test with a clock of its own sets it."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = time.time
        self._own = secrets.token_hex(4)
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, KeptBatch] = {}
        self.hidden_looks = 0
        """So many times a list of batches does not show any yet."""

    def new_id(self) -> str:
        """No other server's batch has it either: what a client has learnt of one stays true of it alone."""
        return f"{self._own}{len(self.batches) + 1:06d}"

    def keep_file(self, upload: Json) -> Json:
        """POST /v1/files."""
        if upload.get("purpose") != "batch":
            raise Refusal(400, f"purpose {upload.get('purpose')!r} is not supported here")
        id = f"file-{len(self.files) + 1:06d}"
        self.files[id] = upload["file"]
        return {
            "id": id,
            "object": "file",
            "bytes": len(upload["file"]),
            "created_at": int(self.now()),
            "filename": upload.get("filename", ""),
            "purpose": "batch",
            "status": "processed",
        }

    def file(self, id: str) -> bytes:
        """GET /v1/files/{id}/content."""
        if id not in self.files:
            raise Refusal(404, f"No such File object: {id}")
        return self.files[id]

    def keep(self, id: str, asked: Sequence[Asked], told: Json | None = None) -> KeptBatch:
        batch = KeptBatch(id, asked, self.now(), told or {})
        self.batches[id] = batch
        return batch

    def find(self, id: str) -> KeptBatch:
        if id not in self.batches:
            raise Refusal(404, f"No batch found with id '{id}'.")
        return self.batches[id]

    def listed(self, limit: int, after: str | None) -> tuple[list[KeptBatch], bool]:
        """A page of batches, the newest first, and whether there are more."""
        if self.hidden_looks > 0:
            self.hidden_looks -= 1
            return [], False
        newest = list(self.batches.values())[::-1]
        start = 0 if after is None else [batch.id for batch in newest].index(after) + 1
        page = newest[start : start + limit]
        for batch in page:
            batch.look()
        return page, len(newest) > start + limit

    # ----------------------------------------------------------------------------------------- as OpenAI tells of it

    def told_by_openai(self, batch: KeptBatch) -> Json:
        if batch.has_ended:
            self._write_results(batch)
        done = batch.count("succeeded")
        return {
            "id": batch.id,
            "object": "batch",
            "completion_window": "24h",
            "created_at": int(batch.created_at),
            "expires_at": int(batch.created_at) + 86_400,
            "status": _status(batch),
            "errors": None,
            "request_counts": {
                "total": len(batch.asked),
                "completed": done,
                "failed": len(batch.asked) - done if batch.has_ended else 0,
            },
            **batch.told,
            "output_file_id": _named(self.files, f"{batch.id}-output"),
            "error_file_id": _named(self.files, f"{batch.id}-error"),
        }

    def _write_results(self, batch: KeptBatch) -> None:
        lines: dict[str, list[Json]] = {"output": [], "error": []}
        for number, item in enumerate(batch.asked):
            line = {"id": f"batch_req_{batch.id}_{number}", "custom_id": item.custom_id, **_outcome(item)}
            lines["output" if item.fate == "succeeded" else "error"].append(line)
        for kind, wanted in lines.items():
            if wanted:
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in wanted)
                self.files[f"{batch.id}-{kind}"] = text.encode()

    # -------------------------------------------------------------------------------------- as Anthropic tells of it

    def told_by_anthropic(self, batch: KeptBatch, base_url: str) -> Json:
        status = "ended" if batch.has_ended else "canceling" if batch.is_cancelled else "in_progress"
        created = datetime.fromtimestamp(batch.created_at, UTC)
        results = f"{base_url}/v1/messages/batches/{batch.id}/results"
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": status,
            "request_counts": {
                "processing": 0 if batch.has_ended else len(batch.asked),
                "succeeded": batch.count("succeeded"),
                "errored": batch.count("errored"),
                "canceled": batch.count("canceled"),
                "expired": batch.count("expired"),
            },
            "created_at": created.isoformat(),
            "expires_at": datetime.fromtimestamp(batch.created_at + 86_400, UTC).isoformat(),
            "ended_at": created.isoformat() if batch.has_ended else None,
            "cancel_initiated_at": None,
            "archived_at": None,
            "results_url": results if batch.has_ended else None,
        }

    def results(self, id: str) -> bytes:
        """GET /v1/messages/batches/{id}/results, not in the order of the requests."""
        batch = self.find(id)
        if not batch.has_ended:
            raise Refusal(404, f"batch {id} has no results yet")
        lines = [{"custom_id": item.custom_id, "result": _result(item)} for item in batch.asked[::-1]]
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _status(batch: KeptBatch) -> str:
    if not batch.has_ended:
        return "cancelling" if batch.is_cancelled else "validating" if batch.looks == 0 else "in_progress"
    if batch.is_cancelled:
        return "cancelled"
    return "expired" if any(item.fate == "expired" for item in batch.asked) else "completed"


def _outcome(item: Asked) -> Json:
    if item.answer is not None and item.fate == "succeeded":
        response = {"status_code": 200, "request_id": f"req_{item.custom_id}", "body": item.answer}
        return {"response": response, "error": None}
    if item.fate == "errored":
        refusal = item.refusal or _openai_error(500, "the job has failed")
        response = {"status_code": refusal["status"], "request_id": "req", "body": refusal["body"]}
        return {"response": response, "error": None}
    code = "batch_expired" if item.fate == "expired" else "batch_cancelled"
    return {"response": None, "error": {"code": code, "message": f"This request was not executed: {code}."}}


def _openai_error(status: int, message: str) -> Json:
    return {"status": status, "body": {"error": {"message": message, "type": "server_error", "code": None}}}


def _result(item: Asked) -> Json:
    match item.fate:
        case "succeeded":
            return {"type": "succeeded", "message": item.answer}
        case "errored":
            failed = anthropic_messages.error(500, "the job has failed", None)
            return {"type": "errored", "error": item.refusal["body"] if item.refusal else failed}
        case _:
            return {"type": item.fate}


def _named(files: dict[str, bytes], id: str) -> str | None:
    return id if id in files else None


def uploaded(content_type: str, content: bytes) -> Json:
    """The fields of a multipart form; `file` as bytes, and its `filename`."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    fields: Json = {}
    form: Any = BytesParser(policy=HTTP).parsebytes(head + content)
    for part in form.iter_parts():
        name, filename = part.get_param("name", header="content-disposition"), part.get_filename()
        value = part.get_payload(decode=True)
        fields[name] = value if filename else value.decode()
        if filename:
            fields["filename"] = filename
    return fields
