// Beside the line. The page follows the station's events; when they stop, it says so at once, and
// no verdict stays in sight: what is not known must not look green.
"use strict";
const stage = document.querySelector(".stage");
const product = stage.dataset.product;
const place = document.getElementById("now");
const csrf = document.querySelector("meta[name=csrf]").content;
const serial = document.querySelector("#serial input[name=serial]");
const json = { Accept: "application/json", "X-CSRF-Token": csrf };

// -- what is known of the station ---------------------------------------------------------------
const PATIENCE = 3 * Number(stage.dataset.beat) * 1000;
let heard = 0;
const mode = (name, on) => document.body.classList.toggle(name, on);
const hear = () => { heard = performance.now(); };
setInterval(() => {
  const silent = !heard || performance.now() - heard > PATIENCE;
  if (silent && heard) { mode("lost", true); mode("waiting", false); }
}, 400);
setTimeout(() => { if (!heard) { mode("waiting", false); mode("lost", true); } }, PATIENCE);

const events = new EventSource("/events");
events.addEventListener("beat", (event) => {
  const was = document.body.className;
  const { blind, why } = JSON.parse(event.data);
  hear();
  document.getElementById("why").textContent = why.join("; ");
  mode("blind", blind);
  // What came while nobody listened is looked up before anything is shown again.
  if (was.includes("lost") || was.includes("waiting")) look(chosen, true);
});
for (const kind of ["inspection", "label", "version", "state", "recipe"])
  events.addEventListener(kind, (event) => {
    hear();
    const data = JSON.parse(event.data);
    if (kind === "state") mode("blind", data.blind);
    else if (kind === "recipe") { if (data.product && String(data.product) !== product) location.assign(`/operator/${data.product}`); }
    else if (String(data.product) === product) look(chosen);
  });
// Whoever was logged out gets no events any more, and would wait for ever.
events.onerror = () => { if (events.readyState === EventSource.CLOSED) { mode("waiting", false); mode("lost", true); setTimeout(() => location.reload(), 5000); } };

// -- the part that is shown ---------------------------------------------------------------------
let chosen = place.firstElementChild.hasAttribute("data-older") ? place.firstElementChild.dataset.part : "";  // an older part that somebody looks at
let changed = 0;    // when the part that is shown became another
let looking = false, again = false, back = 0;
const shown = () => place.firstElementChild;
async function look(at, whole = false) {
  if (looking) { again = true; return; }
  looking = true;
  try {
    do {
      again = false;
      const answer = await fetch(`/operator/${product}/now${at ? `?at=${at}` : ""}`);
      if (!answer.ok || answer.redirected) throw new Error(String(answer.status));
      const before = shown().dataset;
      place.innerHTML = await answer.text();
      const after = shown().dataset;
      if (after.part !== before.part) changed = performance.now();
      if (after.newest !== before.newest && after.newest) sound(after.verdict);
      for (const input of document.querySelectorAll(".say input[name=inspection]")) input.value = after.part;
      for (const button of document.querySelectorAll(".say [data-say=good] button, .say [data-say=bad] button")) button.disabled = !after.part;
      at = chosen;
    } while (again);
    mode("lost", false);
    mode("waiting", false);
  } catch {
    heard = 1;  // long ago
    mode("lost", true);
  } finally { looking = false; }
}
const choose = (at) => {
  chosen = at === shown().dataset.newest ? "" : at;
  clearTimeout(back);
  if (chosen) back = setTimeout(() => choose(shown().dataset.newest), 20000);  // to the line again
  look(chosen);
};
place.addEventListener("click", (event) => {
  const one = event.target.closest("[data-at]");
  if (!one) return;
  event.preventDefault();
  choose(one.dataset.at);
});
const step = (by) => {
  const all = [...place.querySelectorAll("[data-at]")].map((one) => one.dataset.at);
  const next = all[all.indexOf(shown().dataset.part) + by];
  if (next) choose(next);
};

// -- what people say ----------------------------------------------------------------------------
const forms = Object.fromEntries([...document.querySelectorAll("[data-say]")].map((one) => [one.dataset.say, one]));
const say = async (what) => {
  // Who pressed meant the part before, where another came in that moment.
  if (what !== "undo" && performance.now() - changed < 500) return;
  try {
    const answer = await fetch(forms[what].action, { method: "POST", headers: json, body: new URLSearchParams(new FormData(forms[what])) });
    if (!answer.ok) throw new Error(String(answer.status));
    look(chosen);
  } catch { mode("lost", true); heard = 1; }
};
for (const [what, form] of Object.entries(forms))
  form.addEventListener("submit", (event) => { event.preventDefault(); say(what); });

// -- serial numbers -----------------------------------------------------------------------------
serial.form.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const answer = await fetch(serial.form.action, { method: "POST", headers: json, body: new URLSearchParams(new FormData(serial.form)) });
    const told = await answer.json();
    if (told.go) return location.assign(told.go);
    serial.value = told.serial;
    serial.blur();
  } catch { mode("lost", true); heard = 1; }
});

// A scanner types much faster than anybody: what comes in a burst is a code, wherever the focus is,
// and a single key is a command.
const KEYS = { g: () => say("good"), b: () => say("bad"), u: () => say("undo"),
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), Escape: () => choose(shown().dataset.newest) };
let typed = "", timer = 0;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  if (event.target.closest("input, select, textarea, dialog")) return;
  if (event.key.length > 1) {
    if (event.key === "Enter" && typed.length > 1) {
      event.preventDefault();
      clearTimeout(timer);
      serial.value = typed;
      typed = "";
      serial.form.requestSubmit();
    } else if (KEYS[event.key]) { event.preventDefault(); KEYS[event.key](); }
    return;
  }
  if (event.key === " ") return;  // presses the button that has the focus
  event.preventDefault();
  typed += event.key;
  clearTimeout(timer);
  timer = setTimeout(() => {
    const keys = typed;
    typed = "";
    if (keys.length === 1) KEYS[keys.toLowerCase()]?.();
    else { serial.value = keys; serial.focus(); }
  }, 90);
});

// -- sound --------------------------------------------------------------------------------------
const toggle = document.getElementById("sound");
let audio = null;
const loud = () => localStorage.getItem("sound") === "on";
const paint = () => toggle.setAttribute("aria-pressed", String(loud()));
const sound = (verdict) => {
  if (!loud() || verdict === "good") return;
  audio ??= new AudioContext();
  audio.resume();  // browsers want a touch first: the button was one, or the next will be
  const tones = verdict === "reject" ? [330, 220] : [880, 880, 880];
  tones.forEach((hertz, number) => {
    const tone = audio.createOscillator(), level = audio.createGain(), at = audio.currentTime + 0.22 * number;
    tone.frequency.value = hertz;
    level.gain.setValueAtTime(0.25, at);
    level.gain.exponentialRampToValueAtTime(0.001, at + 0.2);
    tone.connect(level).connect(audio.destination);
    tone.start(at);
    tone.stop(at + 0.2);
  });
};
toggle.onclick = () => {
  localStorage.setItem("sound", loud() ? "off" : "on");
  paint();
  sound("reject");
};
paint();

// -- by hand ------------------------------------------------------------------------------------
const hand = document.getElementById("hand");
const video = hand.querySelector("video"), own = hand.querySelector("[data-own]"), shoot = hand.querySelector("[data-shoot]");
const trouble = hand.querySelector("[data-trouble]");
const told = (words) => { trouble.textContent = words; trouble.hidden = !words; };
const close = () => { video.srcObject?.getTracks().forEach((track) => track.stop()); video.srcObject = null; video.hidden = shoot.hidden = true; told(""); };
hand.addEventListener("close", close);
document.getElementById("by-hand").onclick = () => { own.hidden = !navigator.mediaDevices?.getUserMedia; hand.showModal(); };
hand.querySelector("[data-close]").onclick = () => hand.close();
const inspect = async (name, value, file) => {
  const body = new FormData();
  body.append("csrf", csrf);
  body.append(name, value, ...(file ? [file] : []));
  try {
    const answer = await fetch(hand.querySelector("form").action, { method: "POST", headers: json, body });
    const found = await answer.json();
    if (!answer.ok) return told(found.error || `${answer.status}`);
    if (!video.srcObject) hand.close();  // with a camera the next part may follow
    serial.value = "";
    choose(String(found.id));
  } catch { told(trouble.dataset.lost); }
};
const files = hand.querySelector("input[type=file]");
files.onchange = () => { if (files.files[0]) inspect("file", files.files[0], files.files[0].name); files.value = ""; };
for (const button of hand.querySelectorAll("[data-source]")) button.onclick = () => inspect("camera", button.dataset.source);
own.onclick = async () => {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } }, audio: false });
    video.hidden = shoot.hidden = false;
  } catch { told(trouble.dataset.trouble); }
};
shoot.onclick = () => {
  if (!video.videoWidth) return;
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => inspect("file", blob, "camera.png"), "image/png");
};
