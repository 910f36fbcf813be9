// The console: works the service's own routes with the token that it is given, and holds no state of its own.

const $ = (id) => document.getElementById(id);
const STATES = ["all", "queued", "training", "live", "failed", "retired"];
const SHOWN = 200;   // edits in the list
const NEWS = 40;     // events in the list
const EVERY = 2000;  // milliseconds between two looks at the metrics
const POINTS = 40;   // of a sparkline

let token = "";
let model = "";
let filter = "all";
let current = null;
let stream = null;
let last = null;     // counters of the last look
const pace = [];     // tokens per second
const edits = new Map();

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "hue") made.style.setProperty("--hue", value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

const hue = (id) => [...String(id)].reduce((sum, char) => (sum * 31 + char.charCodeAt(0)) % 360, 7);
const lines = (id) => $(id).value.split("\n").map((line) => line.trim()).filter(Boolean);
const clock = (at) => new Date(at).toLocaleTimeString();

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

async function call(path, body, method) {
  const answer = await fetch(path, {
    method: method || (body === undefined ? "GET" : "POST"),
    headers: { Authorization: `Bearer ${token}`, ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error.message);
  return told;
}

// Runs what a button stands for: one at a time, and what goes wrong is said.
async function act(button, work) {
  button.disabled = true;
  try {
    notice("");
    await work();
  } catch (error) {
    notice(error.message);
  } finally {
    button.disabled = false;
  }
}

// -- asking ---------------------------------------------------------------------------------------

function tokensOf(answer) {
  const box = node("div", { class: "tokens" });
  for (const route of answer.routes) {
    const spoke = route.edit !== null || route.slot !== null;
    const said = spoke ? `edit ${route.edit}, slot ${route.slot}` : "the base";
    const score = route.score === null ? "" : `; score ${route.score.toFixed(3)} of ${(route.threshold ?? Infinity).toFixed(3)}`;
    const css = `token ${route.part}${spoke ? " spoke" : ""}`;
    box.append(node("span", { class: css, title: `${said}${score}`, hue: hue(route.edit) }, route.token));
  }
  return box;
}

function scoresOf(answer) {
  const known = answer.routes.filter((route) => route.score !== null && route.threshold !== null);
  const near = known.filter((route) => route.slot !== null || route.score > 0);
  if (!near.length) return node("p", { class: "soft" }, "No edit came near.");
  const top = Math.max(...near.map((route) => Math.max(route.score, route.threshold)));
  const table = node("table", { class: "scores" }, node("thead", {}, node("tr", {},
    node("th", {}, "Token read"), node("th", {}, "Score against threshold"), node("th", {}, ""))));
  const rows = node("tbody");
  for (const route of near) {
    const open = route.slot !== null;
    const fill = node("i"), mark = node("u");
    fill.style.width = `${Math.max(0, 100 * route.score / top)}%`;
    mark.style.left = `calc(${100 * route.threshold / top}% - 2px)`;
    rows.append(node("tr", {}, node("td", {}, route.token),
      node("td", {}, node("div", { class: `bar${open ? " open" : ""}`, hue: hue(route.edit) }, fill, mark)),
      node("td", {}, `${route.score.toFixed(3)} / ${route.threshold.toFixed(3)}`)));
  }
  table.append(rows);
  return table;
}

async function ask() {
  const told = await call("/v1/ask", { prompts: [$("question").value], model });
  const answer = told.answers[0];
  const changed = answer.before !== answer.after;
  const key = node("div", { class: "key" });
  for (const edit of answer.edits) {
    key.append(node("span", { hue: hue(edit.id) }, node("i"), `${edit.prompt ?? edit.id} \u2192 ${edit.target ?? ""}`));
  }
  if (!answer.edits.length) key.append("Only the base spoke.");
  $("answer").replaceChildren(
    node("dl", { class: "says" },
      node("dt", {}, "Base"), node("dd", {}, answer.before || "(nothing)"),
      node("dt", {}, `Version ${told.version}`), node("dd", { class: changed ? "new" : "" }, answer.after || "(nothing)")),
    tokensOf(answer), key, scoresOf(answer));
}

// -- editing --------------------------------------------------------------------------------------

// Wordings that are not as promised.
const broken = (outcome) => Object.entries(outcome?.holds ?? {}).filter(([, held]) => !held).map(([name]) => name);

const wanted = () => ({
  prompt: $("prompt").value, target: $("target").value, aliases: lines("aliases"), paraphrases: lines("paraphrases"),
  ...($("subject").value.trim() ? { subject: $("subject").value } : {}),
  ...($("reason").value.trim() ? { reason: $("reason").value } : {}),
});

async function preview() {
  const told = await call("/v1/edits/preview", { edit: wanted(), model, prompts: lines("probes") });
  const meant = 1 + lines("paraphrases").length;
  const rows = told.answers.map((answer, i) => {
    const changed = answer.before !== answer.after;
    return node("tr", {}, node("td", {}, answer.prompt, i === 0 || i < meant ? null : node("small", {}, " (should stay)")),
      node("td", { class: "kept" }, answer.before), node("td", { class: changed ? "changed" : "kept" }, answer.after));
  });
  const good = ["verified", "partial"].includes(told.outcome.status);
  const wrong = broken(told.outcome);
  const where = wrong.length ? ` It does not hold for ${wrong.join(", ")}.` : "";
  const replaced = told.replaced.length ? ` It takes the place of ${told.replaced.join(", ")}.` : "";
  $("previewed").replaceChildren(
    node("table", { class: "preview" }, node("thead", {}, node("tr", {},
      node("th", {}, "Prompt"), node("th", {}, "Now"), node("th", {}, "With the edit"))), node("tbody", {}, ...rows)),
    node("p", { class: "verdict" }, node("span", { class: `chip ${good ? "live" : "failed"}` }, told.outcome.status),
      good ? ` Nothing is changed yet.${where}${replaced}` : ` The model does not learn it; other words may help.${where}`));
  $("commit").disabled = false;
  $("commit").title = "";
}

async function commit() {
  await call("/v1/edits", { edits: [wanted()], model });
  $("question").value = $("prompt").value;
  $("edit").reset();
  $("previewed").replaceChildren();
  setTimeout(() => ($("commit").disabled = true));  // until the next preview
}

async function replace(edit) {
  const target = prompt(`New answer to "${edit.prompt}"`, edit.target);
  if (target && target !== edit.target) await call(`/v1/edits/${encodeURIComponent(edit.id)}`, { target }, "PUT");
}

async function remove(edit) {
  if (confirm(`Delete the edit "${edit.prompt}" \u2192 "${edit.target}"?`)) {
    await call(`/v1/edits/${encodeURIComponent(edit.id)}`, undefined, "DELETE");
  }
}

// -- lists ----------------------------------------------------------------------------------------

function showEdits() {
  const shown = [...edits.values()].filter((edit) => filter === "all" || edit.status === filter);
  shown.sort((a, b) => b.ticket - a.ticket);
  $("edits").replaceChildren(...shown.slice(0, SHOWN).map((edit) => {
    const where = edit.status === "live" ? `live in version ${edit.live_in}` : edit.retired_in ? `until version ${edit.retired_in}` : "";
    const wrong = broken(edit.outcome);
    const unheld = wrong.length ? `, not as promised: ${wrong.join(", ")}` : "";
    const why = edit.status === "failed" ? (edit.outcome?.why ?? `said \u201c${edit.outcome?.answer ?? ""}\u201d${unheld}`) : "";
    const meta = [`#${edit.ticket}`, clock(edit.accepted_at), edit.author, where, edit.namespace === "default" ? "" : edit.namespace, edit.reason, why];
    return node("li", { "data-edit": edit.id, "data-status": edit.status },
      node("div", { class: "line" }, node("span", { class: `chip ${edit.status}` }, edit.status),
        node("span", { class: "what" }, `${edit.prompt} `, node("b", {}, edit.target))),
      node("div", { class: "meta" }, meta.filter(Boolean).join(" \u00b7 ")),
      edit.status === "live" ? node("div", { class: "acts" },
        node("button", { class: "small", onclick: (event) => act(event.target, () => replace(edit)) }, "Replace"),
        node("button", { class: "small", onclick: (event) => act(event.target, () => remove(edit)) }, "Delete")) : null);
  }));
  $("no-edits").hidden = shown.length > 0;
  $("filter").replaceChildren(...STATES.map((state) => node("button", {
    type: "button", "aria-pressed": String(state === filter),
    onclick: () => { filter = state; showEdits(); },
  }, state)));
}

async function showVersions() {
  const told = await call("/v1/versions");
  current = told.current;
  $("version").textContent = `version ${current}`;
  $("versions").replaceChildren(...told.data.reverse().slice(0, SHOWN).map((version) => {
    const diff = node("div", { class: "diff" });
    const now = version.number === current;
    const meta = [version.at && clock(version.at), version.author, version.reason];
    return node("li", { "data-version": version.number },
      node("div", { class: "line" },
        node("span", { class: now ? "what current" : "what" }, `${version.number}. ${version.kind}${now ? " (served)" : ""}`),
        node("span", { class: "soft" }, `${version.edits} edit${version.edits === 1 ? "" : "s"}`)),
      node("div", { class: "meta" }, meta.filter(Boolean).join(" \u00b7 ")),
      node("div", { class: "acts" },
        version.number && !version.collected ? node("button", { class: "small", onclick: (event) => act(event.target, () => showDiff(version, diff)) }, "Diff") : null,
        !now && !version.collected ? node("button", { class: "small", onclick: (event) => act(event.target, () => rollback(version)) }, "Roll back") : null),
      diff);
  }));
}

async function showDiff(version, box) {
  if (box.childElementCount) return box.replaceChildren();
  const told = await call(`/v1/versions/${version.number}/diff`);
  const line = (css, sign, edit) => node("div", { class: css }, `${sign} ${edit.prompt} `, node("b", {}, edit.target));
  box.replaceChildren(
    ...told.added.map((edit) => line("plus", "+", edit)), ...told.removed.map((edit) => line("minus", "\u2212", edit)),
    ...told.changed.flatMap(([old, edit]) => [line("minus", "\u2212", old), line("plus", "+", edit)]));
  if (!box.childElementCount) box.append("Nothing differs.");
}

async function rollback(version) {
  if (confirm(`Serve version ${version.number} again? All that came later is retired.`)) {
    await call(`/v1/versions/${version.number}/rollback`, { reason: `back to ${version.number}, from the console` });
  }
}

async function showSpaces() {
  const told = await call("/v1/models");
  const names = told.data.map((one) => one.id);
  if (!names.includes(model)) model = names[0];
  $("model").textContent = names[0];
  $("space").replaceChildren(...names.map((name) => node("option", { value: name, selected: name === model }, name.split("@")[1] ?? "default")));
}

// -- what happens ---------------------------------------------------------------------------------

async function follow() {
  stream?.abort();
  const mine = (stream = new AbortController());
  let since = null;
  while (!mine.signal.aborted) {
    try {
      await refresh();
      const path = since === null ? "/v1/events" : `/v1/events?since=${since}`;
      const answer = await fetch(path, { headers: { Authorization: `Bearer ${token}` }, signal: mine.signal });
      if (!answer.ok) throw new Error((await answer.json()).error.message);
      $("status").className = "dot on";
      $("status").title = "connected";
      let text = "";
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        text += value;
        const blocks = text.split("\n\n");
        text = blocks.pop();
        const events = blocks.flatMap((block) => block.split("\n").filter((line) => line.startsWith("data: "))).map((line) => JSON.parse(line.slice(6)));
        if (events.length) {
          since = events.at(-1).number;
          await happened(events);
        }
      }
    } catch (error) {
      if (mine.signal.aborted) return;
      notice(error.message);
    }
    $("status").className = "dot off";
    $("status").title = "not connected";
    await new Promise((done) => setTimeout(done, 1500));
  }
}

async function happened(events) {
  const changed = [...new Set(events.map((event) => event.edit).filter(Boolean))];
  if (changed.length > 20) await loadEdits();
  else for (const id of changed) edits.set(id, await call(`/v1/edits/${encodeURIComponent(id)}`));
  showEdits();
  for (const event of events) {
    const about = event.edit ? edits.get(event.edit)?.prompt ?? event.edit : `${event.version}`;
    $("events").prepend(node("li", {}, node("span", { class: "soft" }, `${clock(event.at)} `),
      node("span", { class: event.kind === "training" ? "chip queued" : `chip ${event.kind}` }, event.kind), ` ${about}`));
  }
  while ($("events").childElementCount > NEWS) $("events").lastElementChild.remove();
  if (events.some((event) => event.version !== null)) await Promise.all([showVersions(), showSpaces()]);
}

async function loadEdits() {
  let page, after = 0;
  do {
    page = await call(`/v1/edits?limit=1000&after=${after}`);
    for (const edit of page.data) edits.set(edit.id, edit);
    after = page.data.at(-1)?.ticket ?? after;
  } while (page.has_more);
}

async function refresh() {
  await Promise.all([showSpaces(), showVersions(), loadEdits()]);
  showEdits();
  notice("");
}

// -- metrics --------------------------------------------------------------------------------------

function numbers(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const match = /^(\w+)(?:\{[^}]*\})? (\S+)$/.exec(line);
    if (match) found[match[1]] = (found[match[1]] ?? 0) + Number(match[2]);
  }
  return found;
}

function tile(name, value, more = {}) {
  const box = node("div", { class: `tile${more.alarm ? " alarm" : ""}` }, node("b", {}, value), node("span", {}, name));
  if (more.points) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${POINTS - 1} 20`);
    svg.setAttribute("preserveAspectRatio", "none");
    const top = Math.max(1, ...more.points);
    const path = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    path.setAttribute("points", more.points.map((value, i) => `${i + POINTS - more.points.length},${19 - 18 * value / top}`).join(" "));
    svg.append(path);
    box.append(svg);
  }
  return box;
}

async function measure() {
  const answer = await fetch("/metrics", { headers: { Authorization: `Bearer ${token}` } });
  if (!answer.ok) throw new Error(answer.statusText);
  const now = numbers(await answer.text());
  const at = performance.now();
  const rate = last ? 1000 * (now.wise_generated_tokens_total - last.now.wise_generated_tokens_total) / (at - last.at) : 0;
  const steps = last ? now.wise_step_seconds_count - last.now.wise_step_seconds_count : 0;
  const step = steps ? 1000 * (now.wise_step_seconds_sum - last.now.wise_step_seconds_sum) / steps : null;
  last = { now, at };
  pace.push(rate);
  if (pace.length > POINTS) pace.shift();
  const routed = now.wise_routed_tokens_total ?? 0;
  $("tiles").replaceChildren(
    tile("tokens a second", rate.toFixed(0), { points: pace }),
    tile("answers running / waiting", `${now.wise_running_answers ?? 0} / ${now.wise_waiting_answers ?? 0}`),
    tile("ms a step", step === null ? "\u2013" : step.toFixed(1)),
    tile("edits live", String(now.wise_live_edits ?? 0)),
    tile("tokens routed to edits", routed.toLocaleString()),
    tile("false routes on canaries", now.wise_canary_tokens ? String(now.wise_canary_false_routes) : "no set", { alarm: now.wise_canary_alarm > 0 }));
}

async function watch() {
  for (;;) {
    try { if (token) await measure(); } catch { /* said by the stream of events */ }
    await new Promise((done) => setTimeout(done, EVERY));
  }
}

// -- start ----------------------------------------------------------------------------------------

function connect(given) {
  token = given;
  sessionStorage.setItem("wise-token", given);
  follow();
}

$("access").addEventListener("submit", (event) => { event.preventDefault(); connect($("token").value); $("token").value = ""; });
$("ask").addEventListener("submit", (event) => { event.preventDefault(); act(event.submitter ?? $("ask").lastElementChild, ask); });
$("edit").addEventListener("submit", (event) => { event.preventDefault(); act($("preview"), preview); });
$("edit").addEventListener("input", () => { $("commit").disabled = true; $("commit").title = "Preview it first"; });
$("commit").addEventListener("click", () => act($("commit"), commit));
$("space").addEventListener("change", () => { model = $("space").value; });

const given = location.hash.slice(1) || sessionStorage.getItem("wise-token") || "";
if (location.hash) history.replaceState(null, "", location.pathname);  // a token has no business in the address
showEdits();
if (given) connect(given);
else notice("Give a token to connect; `wise serve` shows one when it starts, and `wise token` makes them.");
watch();
