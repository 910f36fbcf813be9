// The service's routes: the token that requests carry, JSON in and out, and streams of server-sent events.

export const session = { token: "", scope: "", holder: "", model: "", chat: false };
const SCOPES = ["reader", "editor", "admin"];

export const may = (scope) => SCOPES.indexOf(session.scope) >= SCOPES.indexOf(scope);

export async function request(path, { body, method, raw, signal, headers } = {}) {
  const content = body === undefined ? undefined : raw ? body : JSON.stringify(body);
  const type = raw ? "application/octet-stream" : "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method: method || (body === undefined ? "GET" : "POST"), body: content, signal,
      headers: { Authorization: `Bearer ${session.token}`, ...(body === undefined ? {} : { "Content-Type": type }), ...headers },
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error("The service cannot be reached; see that it runs");
  }
  if (answer.ok) return answer;
  const answerBody = await answer.json().catch(() => null);
  const error = new Error(answerBody?.error?.message ?? `The service answered ${answer.status} ${answer.statusText}`);
  error.status = answer.status;
  throw error;
}

export const call = async (path, body, method) => (await request(path, { body, method })).json();

// The data of each event of a stream of server-sent events, as it comes.
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read().catch(() => { throw new Error("The connection to the service was lost"); });
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      for (const line of block.split("\n")) if (line.startsWith("data: ")) yield line.slice(6);
    }
  }
}
