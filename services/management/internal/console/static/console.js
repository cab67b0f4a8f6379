// The console's script. Every page works without it, but for the live tail. It adds local times, parts that
// refresh themselves, and small comforts. Nothing a stranger wrote is ever made into markup here: rows and
// parts come escaped from the server.
"use strict";

const lang = document.documentElement.lang || "en";
const $ = (id) => document.getElementById(id);

// -- times: in the viewer's zone ---------------------------------------------

const full = new Intl.DateTimeFormat(lang, { dateStyle: "medium", timeStyle: "medium" });
const clock = new Intl.DateTimeFormat(lang, { timeStyle: "medium" });
const relative = new Intl.RelativeTimeFormat(lang, { numeric: "always", style: "short" });
const now = new Intl.RelativeTimeFormat(lang, { numeric: "auto", style: "short" }).format(0, "second");
const steps = [["second", 60], ["minute", 60], ["hour", 24], ["day", 7], ["week", 4.35], ["month", 12], ["year", Infinity]];

function fromNow(at) {
  let n = (at - Date.now()) / 1000;
  if (Math.abs(n) < 1) return now;
  for (const [unit, size] of steps) {
    if (Math.abs(n) < size) return relative.format(Math.trunc(n), unit);
    n /= size;
  }
  return "";
}

// countdown is the time that remains: 4:07, or 1:04:07.
function countdown(at) {
  const n = Math.ceil((at - Date.now()) / 1000);
  if (n <= 0) return now;
  const two = (x) => String(x).padStart(2, "0");
  const minutes = Math.floor(n / 60) % 60, hours = Math.floor(n / 3600);
  return hours ? `${hours}:${two(minutes)}:${two(n % 60)}` : `${minutes}:${two(n % 60)}`;
}

function showTimes(root) {
  for (const el of root.querySelectorAll("time[data-form]")) {
    const at = new Date(el.dateTime);
    if (isNaN(at)) continue;
    const form = el.dataset.form;
    const text = form === "relative" ? fromNow(at) : form === "countdown" ? countdown(at) : (form === "clock" ? clock : full).format(at);
    if (el.textContent !== text) el.textContent = text;
    const title = form === "full" ? fromNow(at) : full.format(at);
    if (el.title !== title) el.title = title;
  }
}

// What the server last sent for each part that refreshes itself.
const served = new Map();
for (const part of document.querySelectorAll("[data-live]")) served.set(part.id, part.innerHTML);

showTimes(document);
setInterval(() => { if (!document.hidden) showTimes(document); }, 1000);

// -- the tab of this page, where the tabs are wider than the screen ----------

const tab = document.querySelector(".top nav [aria-current]");
if (tab) tab.parentElement.scrollLeft += tab.getBoundingClientRect().right - tab.parentElement.getBoundingClientRect().right;

// -- parts that refresh themselves -------------------------------------------

function busy(part) {
  const selection = document.getSelection();
  return part.querySelector(":popover-open") || (selection && !selection.isCollapsed && part.contains(selection.anchorNode));
}

// replacePart puts a new state into the page, and leaves what the reader opened or stands on as it is.
function replacePart(part, fresh) {
  const html = fresh.innerHTML;
  if (served.get(part.id) === html || busy(part)) return;
  served.set(part.id, html);
  const open = new Set([...part.querySelectorAll("details[open]")].map((d) => d.id));
  const focus = part.contains(document.activeElement) ? document.activeElement : null;
  const key = focus && (focus.id ? "#" + CSS.escape(focus.id) : focus.getAttribute("href") ? `a[href="${CSS.escape(focus.getAttribute("href"))}"]` : "");
  const before = part.querySelector("[data-announce]")?.textContent;
  for (const d of fresh.querySelectorAll("details")) d.open = open.has(d.id);
  part.replaceChildren(...fresh.childNodes);
  showTimes(part);
  if (key) part.querySelector(key)?.focus({ preventScroll: true });
  const after = part.querySelector("[data-announce]")?.textContent;
  if (after && after !== before) $("announce").textContent = after;
}

async function refresh() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html", "Gancho-Refresh": "1" }, cache: "no-store" });
  if (answer.redirected) return location.reload(); // the session has ended
  if (!answer.ok) throw new Error(String(answer.status));
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(part.id);
    if (fresh) replacePart(part, fresh);
  }
  return Number(page.body.dataset.poll || 0);
}

function poll(every) {
  let wait = every, failures = 0;
  const next = () => setTimeout(async () => {
    if (!document.hidden) {
      try {
        wait = await refresh();
        failures = 0;
        $("offline").hidden = true;
      } catch {
        failures++;
        wait = Math.min(every * 2 ** failures, 30000);
        $("offline").hidden = failures < 2;
      }
    }
    if (wait) next();
  }, wait);
  next();
}

if (document.body.dataset.poll && document.querySelector("[data-live]")) poll(Number(document.body.dataset.poll));

// -- forms --------------------------------------------------------------------

// A form is sent once.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || event.defaultPrevented) return;
  if (form.dataset.sent) return event.preventDefault();
  form.dataset.sent = "1";
});
window.addEventListener("pageshow", () => { for (const f of document.forms) delete f.dataset.sent; });

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const field = $(button.dataset.copy);
    if (field.select) field.select();
    else document.getSelection().selectAllChildren(field);
    try { await navigator.clipboard.writeText(field.value ?? field.textContent); } catch { document.execCommand("copy"); }
    button.textContent = button.dataset.copied;
    $("announce").textContent = button.dataset.copied;
  });
}

// Rows of a form: one more like the last, which was empty.
for (const rows of document.querySelectorAll("[data-rows]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button";
  button.textContent = rows.dataset.rows;
  button.addEventListener("click", () => {
    const all = rows.querySelectorAll(".condition-row"), last = all[all.length - 1].cloneNode(true);
    last.setAttribute("aria-label", last.getAttribute("aria-label").replace(/\d+/, all.length + 1));
    for (const field of last.querySelectorAll("input")) field.value = "";
    for (const problem of last.querySelectorAll(".problem")) problem.remove();
    button.before(last);
    last.querySelector("input").focus();
    button.hidden = all.length + 1 >= Number(rows.dataset.most);
  });
  rows.append(button);
}

// Times of a form are in the viewer's zone and sent in UTC.
for (const form of document.querySelectorAll("form[data-zone]")) {
  const zone = $("zone");
  zone.textContent = zone.dataset.zoneName.replace("{zone}", Intl.DateTimeFormat().resolvedOptions().timeZone);
  form.addEventListener("formdata", (event) => {
    for (const field of form.querySelectorAll('input[type="datetime-local"]')) {
      if (field.value) event.formData.set(field.name + "_utc", new Date(field.value).toISOString());
    }
  });
}

for (const form of document.querySelectorAll("form[data-select]")) {
  const all = form.querySelector("[data-all]"), some = form.querySelector("[data-some]"), chosen = form.querySelector("[data-chosen]");
  if (!all) continue;
  const boxes = [...form.querySelectorAll('input[name="id"]')];
  const update = () => {
    const n = boxes.filter((b) => b.checked).length;
    all.checked = n === boxes.length;
    all.indeterminate = n > 0 && n < boxes.length;
    some.disabled = n === 0;
    chosen.textContent = n ? ` (${n})` : "";
  };
  all.addEventListener("change", () => { for (const b of boxes) b.checked = all.checked; update(); });
  for (const b of boxes) b.addEventListener("change", update);
  window.addEventListener("pageshow", update);
  update();
}

// A link from elsewhere does not carry the session's cookie; a request of this page does.
const entry = document.querySelector("form[data-check]");
if (entry) {
  fetch("/sign-in?check", { cache: "no-store" }).then((answer) => {
    if (answer.status === 204) location.replace(entry.dataset.check);
  }, () => {});
}

// -- live tail ----------------------------------------------------------------

const tail = $("tail");
if (tail) follow();

function follow() {
  const most = 200;
  const rows = tail.tBodies[0], state = $("tail-state"), pause = $("tail-pause"), empty = $("tail-empty");
  let waiting = [], paused = false, news = 0, seen = 0;

  const show = () => {
    const lost = source.readyState !== EventSource.OPEN;
    state.className = "live " + (paused ? "" : lost ? "off" : "on");
    state.textContent = paused ? state.dataset.paused + (waiting.length ? ` (${waiting.length})` : "") : lost ? state.dataset.lost : state.dataset.open;
  };
  const add = (html) => {
    const template = document.createElement("template");
    template.innerHTML = `<table><tbody>${html}</tbody></table>`; // escaped by the server
    const row = template.content.querySelector("tr");
    row.classList.add("fresh");
    showTimes(row);
    rows.prepend(row);
    while (rows.rows.length > most) rows.lastElementChild.remove();
    empty.hidden = true;
    tail.hidden = false;
    news++;
  };
  const signedOut = () => { source.close(); state.className = "live off"; state.textContent = state.dataset.signedOut; };
  let source;
  const connect = () => {
    source = new EventSource(tail.dataset.stream);
    source.addEventListener("open", show);
    source.addEventListener("error", () => {
      show();
      if (source.readyState === EventSource.CLOSED) setTimeout(again, 5000); // refused: the browser does not try again
    });
    source.addEventListener("signed_out", signedOut);
    source.addEventListener("attempt", (event) => {
      const id = Number(event.lastEventId);
      if (id && id <= seen) return; // sent again after a reconnection
      seen = id || seen;
      if (paused) {
        waiting.push(event.data);
        if (waiting.length > most) waiting.shift();
        show();
      } else add(event.data);
    });
  };
  const again = async () => {
    try {
      const answer = await fetch("/sign-in?check", { cache: "no-store" });
      if (answer.ok && answer.status !== 204) return signedOut();
    } catch { /* not reachable: the next try finds out */ }
    connect();
  };
  connect();
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? pause.dataset.resume : pause.dataset.pause;
    if (!paused) { waiting.forEach(add); waiting = []; }
    show();
  });
  $("tail-clear").addEventListener("click", () => { rows.replaceChildren(); waiting = []; empty.hidden = false; tail.hidden = true; show(); });
  // A screen reader announces how many came, not each of them.
  setInterval(() => {
    if (news) $("announce").textContent = news === 1 ? tail.dataset.newsOne : tail.dataset.news.replace("{n}", news);
    news = 0;
  }, 5000);
}
