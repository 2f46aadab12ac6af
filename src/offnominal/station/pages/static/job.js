// A job's progress: told by the station's events, asked for once more whenever they come back.
"use strict";
for (const place of document.querySelectorAll("[data-job]")) {
  const part = (name) => place.querySelector(`[data-${name}]`);
  const refresh = async () => {
    const answer = await fetch(`/jobs/${place.dataset.job}`);
    if (!answer.ok) return location.reload();
    const job = await answer.json();
    if (job.state !== "running") return location.assign(job.go || location.href);
    part("stage").textContent = job.stage;
    part("count").textContent = job.count;
    if (job.share === null) part("share").removeAttribute("value");
    else part("share").value = job.share;
  };
  let waiting = false;
  const soon = () => {  // many steps a second are one look
    if (waiting) return;
    waiting = true;
    setTimeout(() => { waiting = false; refresh().catch(() => {}); }, 250);
  };
  const events = new EventSource("/events");
  events.addEventListener("job", (event) => {
    if (JSON.parse(event.data).id === place.dataset.job) soon();
  });
  events.addEventListener("beat", soon);
}
