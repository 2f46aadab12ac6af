"""How far a job is, for pages that wait for it."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException

from offnominal.station.access.who import Who, allowed
from offnominal.station.language import _, ngettext
from offnominal.station.learning.jobs import Job
from offnominal.station.station import Here

__all__ = ["router", "told", "trouble"]

router = APIRouter()


@router.get("/jobs/{job}")
async def show(
    job: str, station: Here, who: Annotated[Who, Depends(allowed("engineer"))]
) -> dict[str, Any]:
    """One of them, in words."""
    found = station.jobs.get(job)
    if found is None:
        raise HTTPException(404, _("This job is not known any more: the station was restarted."))
    return told(found)


def told(job: Job) -> dict[str, Any]:
    """A job as pages have it: in the reader's language."""
    stages = {
        "": _("Waiting for its turn"),
        "features": _("Looking at the pictures"),
        "threshold": _("Comparing each picture with the others"),
        "defects": _("Trying made-up defects"),
        "predict": _("Judging the pictures"),
    }
    done = {"done": job.done, "total": job.total}
    many = ngettext("%(done)s of %(total)s picture", "%(done)s of %(total)s pictures", job.total)
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "stage": stages.get(job.stage, _("Working")),
        "count": many % done if job.total and job.stage in ("features", "predict") else "",
        "share": min(1.0, job.done / job.total) if job.total and job.stage else None,
        "error": trouble(job),
        "go": job.result.get("go", ""),
    }


def trouble(job: Job | None) -> str:
    """Why a job failed; empty of one that did not, and where there is none."""
    if job is None or job.state != "failed":
        return ""
    if job.interrupted:
        return _("This was interrupted, because the station was restarted: start it again.")
    return job.error
