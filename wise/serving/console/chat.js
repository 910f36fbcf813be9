// The chat: answers stream in, can be stopped, and name the edits that wrote their words. On a base without a chat
// template each message is a text that the model continues.

import { call, events, request, session } from "./api.js";
import { $, hue, node, say } from "./dom.js";
import { act, dismiss, notice } from "./notices.js";
import { showEdit } from "./edits.js";

let turns = [];          // of this conversation, as the service takes them
let running = null;      // the controller that stops the streaming answer

export function onConnect() {
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
  const question = session.chat ? messages() : words, conversation = turns;  // it may end before the answer does
  const userTurn = turn("user", "You", words), answer = turn("assistant", "Model", "");
  answer.box.setAttribute("aria-busy", "true");
  const result = { text: "", routes: null, edits: [], version: null, finish: null };
  try {
    await stream(question, answer, result);
  } catch (error) {
    if (!running.signal.aborted) notice("chat", "problem", error.message);
    result.finish ??= running.signal.aborted ? "stopped" : "failed";
  }
  answer.box.removeAttribute("aria-busy");
  const sentence = finish(answer, result, question);
  if (session.chat && result.text) conversation.push({ role: "assistant", content: result.text });
  else conversation.pop();
  if (!result.text && result.finish === "failed") {  // nothing came: the words go back to be sent again
    $("words").value ||= words;
    userTurn.item.remove();
    answer.item.remove();
  }
  say($("chat-said"), `${result.text || "No answer"}${result.finish === "stopped" ? ". Stopped." : ""}${sentence ? `. ${sentence}` : ""}`);
  running = null;
  if (document.activeElement === $("stop")) $("words").focus();
  $("stop").hidden = true;
  $("send").disabled = false;
}

async function stream(question, answer, result) {
  const body = {
    model: session.model, stream: true, stream_options: { include_usage: true }, temperature: 0,
    max_tokens: Number($("longest").value) || 128, wise: { routes: true },
    ...(session.chat ? { messages: question } : { prompt: question }),
  };
  const path = session.chat ? "/v1/chat/completions" : "/v1/completions";
  for await (const data of events(await request(path, { body, signal: running.signal }))) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data), choice = chunk.choices?.[0];
    if (chunk.error) throw new Error(chunk.error.message);
    const text = choice?.delta?.content ?? choice?.text ?? "";
    if (choice?.finish_reason) result.finish = choice.finish_reason;
    if (chunk.wise) {
      [result.routes, result.edits, result.version] = [chunk.wise.routes?.[0], chunk.wise.edits?.[0] ?? [], chunk.wise.version];
      result.finish = chunk.wise.finish_reasons?.[0] ?? result.finish;
    }
    if (!text) continue;
    const near = innerHeight + scrollY >= document.body.scrollHeight - 80;
    result.text += text;
    answer.text.append(text);
    if (near) scrollTo({ top: document.body.scrollHeight });
  }
}

function turn(role, name, text) {
  const textBox = node("div", { class: "said" }, text), more = node("div", { class: "more" });
  const box = node("div", { class: "turn" }, node("span", { class: "who" }, name), textBox, more);
  const item = node("li", { class: role }, box);
  $("turns").append(item);
  item.scrollIntoView({ block: "nearest" });
  return { item, box, text: textBox, more };
}

// Marks the words that edits wrote, and names these edits below the answer. Returns the names as a sentence.
function finish(answer, result, question) {
  const parts = result.routes ? partsByEdit(result.text, result.routes) : [{ by: null, text: result.text }];
  const writers = [...new Set(parts.map((part) => part.by).filter((by) => by !== null))];
  const edits = new Map(result.edits.map((edit) => [edit.id, edit]));
  answer.text.replaceChildren(...parts.map(({ by, text }) => by === null ? text : node("mark", {
    class: "spoke", hue: hue(by), title: `written by edit ${writers.indexOf(by) + 1}`,
  }, text, node("sup", {}, String(writers.indexOf(by) + 1)))));
  if (!result.text) answer.text.replaceChildren(node("span", { class: "soft" }, "(nothing)"));
  const nameOf = (id) => (edits.has(id) ? `${edits.get(id).prompt} \u2192 ${edits.get(id).target}` : id);
  const key = writers.map((id, i) => node("li", { hue: hue(id) }, node("i", { "aria-hidden": "true" }), `${i + 1} `,
    edits.has(id) ? node("button", { type: "button", class: "link", onclick: () => act("chat", null, () => showEdit(id)) }, nameOf(id)) : nameOf(id)));
  const end = { length: "cut off at the longest answer", deadline: "cut off: its time was over", stopped: "stopped", failed: "cut off by an error" }[result.finish];
  const notes = [result.version === null ? null : `version ${result.version}`, result.routes && !key.length ? "only the base spoke" : null, end];
  answer.more.replaceChildren(
    ...(key.length ? [node("ul", { class: "key", "aria-label": "Edits that spoke" }, key)] : []),
    node("p", { class: "meta" }, notes.filter(Boolean).join(" \u00b7 ")),
    ...(key.length ? [node("div", { class: "acts" }, node("button", { type: "button", class: "small", onclick: (event) =>
      act("chat", event.target, () => compare(question, event.target)) }, "Without edits"))] : []),
    ...(result.routes ? scores(result.routes) : []));
  return writers.map((id) => `An edit spoke: ${nameOf(id)}`).join(". ");
}

// The text in parts, each with the edit that wrote it, or null: a token is written by the edit that was active when the
// token before it was read. If several edits share the slot, it is not known which of them wrote it.
function partsByEdit(text, routes) {
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

async function compare(question, button) {
  const comparison = await call("/v1/ask", { prompts: [question], model: session.model, ...(session.chat ? {} : { chat: false }) });
  const box = node("p", { class: "base" }, node("span", { class: "who" }, "Without edits"), ` ${comparison.answers[0].before || "(nothing)"}`);
  button.closest(".acts").replaceWith(box);
  say($("chat-said"), `Without edits: ${comparison.answers[0].before}`);
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
