// The chat: turns that stream in, can be stopped, and name the edits that wrote their words. On a base without a chat
// template each message is a text that the model continues.

import { call, events, request, session } from "./api.js";
import { $, hue, node, say } from "./dom.js";
import { act, dismiss, notice } from "./notices.js";
import { showEdit } from "./edits.js";

let turns = [];          // of this conversation, as the service takes them
let running = null;      // what stops the answer that is streaming

export function connected() {
  say($("chat-title"), session.chat ? "Chat" : "Completions");
  $("with-system").hidden = !session.chat;
  say($("chat-options").firstElementChild, session.chat ? "System message and length" : "Length");
  say($("words-label"), session.chat ? "Message" : "Text to continue");
}

function messages() {
  const system = $("system").value.trim();
  return [...(system ? [{ role: "system", content: system }] : []), ...turns];
}

async function send() {
  const words = $("words").value.replace(/\s+$/, "");
  if (!words || running) return;
  running = new AbortController();
  $("words").value = "";
  $("stop").hidden = false;
  $("send").disabled = true;
  dismiss("chat");
  turns.push({ role: "user", content: words });
  const asked = session.chat ? messages() : words, conversation = turns;  // which may be over before the answer is
  const mine = turn("user", "You", words), answer = turn("assistant", "Model", "");
  answer.box.setAttribute("aria-busy", "true");
  const got = { text: "", routes: null, edits: [], version: null, finish: null };
  try {
    await stream(asked, answer, got);
  } catch (error) {
    if (!running.signal.aborted) notice("chat", "problem", error.message);
    got.finish ??= running.signal.aborted ? "stopped" : "failed";
  }
  answer.box.removeAttribute("aria-busy");
  const spoke = finish(answer, got, asked);
  if (session.chat && got.text) conversation.push({ role: "assistant", content: got.text });
  else conversation.pop();
  if (!got.text && got.finish === "failed") {  // nothing came: the words go back to be sent again
    $("words").value ||= words;
    mine.item.remove();
    answer.item.remove();
  }
  say($("chat-said"), `${got.text || "No answer"}${got.finish === "stopped" ? ". Stopped." : ""}${spoke ? `. ${spoke}` : ""}`);
  running = null;
  if (document.activeElement === $("stop")) $("words").focus();
  $("stop").hidden = true;
  $("send").disabled = false;
}

async function stream(asked, answer, got) {
  const body = {
    model: session.model, stream: true, stream_options: { include_usage: true }, temperature: 0,
    max_tokens: Number($("longest").value) || 128, wise: { routes: true },
    ...(session.chat ? { messages: asked } : { prompt: asked }),
  };
  const path = session.chat ? "/v1/chat/completions" : "/v1/completions";
  for await (const data of events(await request(path, { body, signal: running.signal }))) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data), choice = chunk.choices?.[0];
    if (chunk.error) throw new Error(chunk.error.message);
    const text = choice?.delta?.content ?? choice?.text ?? "";
    if (choice?.finish_reason) got.finish = choice.finish_reason;
    if (chunk.wise) {
      [got.routes, got.edits, got.version] = [chunk.wise.routes?.[0], chunk.wise.edits?.[0] ?? [], chunk.wise.version];
      got.finish = chunk.wise.finish_reasons?.[0] ?? got.finish;
    }
    if (!text) continue;
    const near = innerHeight + scrollY >= document.body.scrollHeight - 80;
    got.text += text;
    answer.text.append(text);
    if (near) scrollTo({ top: document.body.scrollHeight });
  }
}

function turn(role, name, text) {
  const said = node("div", { class: "said" }, text), more = node("div", { class: "more" });
  const box = node("div", { class: "turn" }, node("span", { class: "who" }, name), said, more);
  const item = node("li", { class: role }, box);
  $("turns").append(item);
  item.scrollIntoView({ block: "nearest" });
  return { item, box, text: said, more };
}

// Marks the words that edits wrote, and says below which they were. Returns that as a sentence.
function finish(answer, got, asked) {
  const parts = got.routes ? written(got.text, got.routes) : [{ by: null, text: got.text }];
  const writers = [...new Set(parts.map((part) => part.by).filter((by) => by !== null))];
  const known = new Map(got.edits.map((edit) => [edit.id, edit]));
  answer.text.replaceChildren(...parts.map(({ by, text }) => by === null ? text : node("mark", {
    class: "spoke", hue: hue(by), title: `written by edit ${writers.indexOf(by) + 1}`,
  }, text, node("sup", {}, String(writers.indexOf(by) + 1)))));
  if (!got.text) answer.text.replaceChildren(node("span", { class: "soft" }, "(nothing)"));
  const nameOf = (id) => (known.has(id) ? `${known.get(id).prompt} \u2192 ${known.get(id).target}` : id);
  const key = writers.map((id, i) => node("li", { hue: hue(id) }, node("i", { "aria-hidden": "true" }), `${i + 1} `,
    known.has(id) ? node("button", { type: "button", class: "link", onclick: () => act("chat", null, () => showEdit(id)) }, nameOf(id)) : nameOf(id)));
  const end = { length: "cut off at the longest answer", deadline: "cut off: its time was over", stopped: "stopped", failed: "cut off by an error" }[got.finish];
  const told = [got.version === null ? null : `version ${got.version}`, got.routes && !key.length ? "only the base spoke" : null, end];
  answer.more.replaceChildren(
    ...(key.length ? [node("ul", { class: "key", "aria-label": "Edits that spoke" }, key)] : []),
    node("p", { class: "meta" }, told.filter(Boolean).join(" \u00b7 ")),
    ...(key.length ? [node("div", { class: "acts" }, node("button", { type: "button", class: "small", onclick: (event) =>
      act("chat", event.target, () => compare(asked, event.target)) }, "Without edits"))] : []),
    ...(got.routes ? scores(got.routes) : []));
  return writers.map((id) => `An edit spoke: ${nameOf(id)}`).join(". ");
}

// The text in parts, each with the edit that wrote it, or null: a token is written by the edit that was active when the
// token before it was read. A slot that several edits share does not say which of them it was.
function written(text, routes) {
  const parts = [];
  let at = 0;
  for (let i = 0; i < routes.length && at < text.length; i++) {
    if (routes[i].part !== "answer") continue;
    const end = at + routes[i].token.length, by = routes[i - 1]?.slot != null ? routes[i - 1].edit ?? "a shared slot" : null;
    if (parts.length && parts.at(-1).by === by) parts.at(-1).text += text.slice(at, end);
    else parts.push({ by, text: text.slice(at, end) });
    at = end;
  }
  if (at < text.length) parts.push({ by: null, text: text.slice(at) });
  return parts;
}

async function compare(asked, button) {
  const told = await call("/v1/ask", { prompts: [asked], model: session.model, ...(session.chat ? {} : { chat: false }) });
  const box = node("p", { class: "base" }, node("span", { class: "who" }, "Without edits"), ` ${told.answers[0].before || "(nothing)"}`);
  button.closest(".acts").replaceWith(box);
  say($("chat-said"), `Without edits: ${told.answers[0].before}`);
}

function scores(routes) {
  const near = routes.filter((route) => route.score !== null && route.threshold !== null && (route.slot !== null || route.score > 0));
  if (!near.length) return [];
  const top = Math.max(...near.map((route) => Math.max(route.score, route.threshold)));
  const rows = near.map((route) => {
    const fill = node("i"), mark = node("u");
    fill.style.width = `${Math.max(0, 100 * route.score / top)}%`;
    mark.style.left = `calc(${100 * route.threshold / top}% - 2px)`;
    return node("tr", {}, node("td", {}, route.token),
      node("td", {}, node("div", { class: `bar${route.slot === null ? "" : " open"}`, hue: hue(route.edit) }, fill, mark)),
      node("td", {}, `${route.score.toFixed(3)} / ${route.threshold.toFixed(3)}`));
  });
  return [node("details", {}, node("summary", {}, "Scores of the router"), node("table", { class: "scores" },
    node("thead", {}, node("tr", {}, node("th", {}, "Token"), node("th", { colspan: "2" }, "Score / threshold"))),
    node("tbody", {}, rows)))];
}

$("say").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  turns = [];
  $("turns").replaceChildren();
  dismiss("chat");
  $("words").focus();
});
