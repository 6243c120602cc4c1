// The server's API v1. The key lives in this module and nowhere else.

let key = null;
export const setKey = text => { key = text || null; };

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `status ${status}`);
    this.status = status;
    this.code = body.code || "unreachable";
    this.hint = body.hint || "";
  }
}

async function ask(method, path, body) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Problem(0, { code: "unreachable", detail: "the server does not answer" });
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Problem(answer.status, said);
  return said;
}

const query = values => new URLSearchParams(values).toString();

export const models = () => ask("GET", "/v1/models");
export const recommend = body => ask("POST", "/v1/recommend", body);
export const beside = (name, body) => ask("POST", `/v1/models/${encodeURIComponent(name)}/recommend`, body);
export const trace = body => ask("POST", "/v1/trace", body);
export const explain = body => ask("POST", "/v1/explain", body);
export const search = body => ask("POST", "/v1/search", body);
export const similar = body => ask("POST", "/v1/similar", body);
export const tree = (prefix, offset, limit) => ask("GET", `/v1/tree?${query({ prefix, offset, limit })}`);
export const findItems = (words, limit) => ask("GET", `/v1/items?${query({ query: words, limit })}`);
export const userHistory = id => ask("GET", `/v1/users/${encodeURIComponent(id)}/history`);

const known = new Map();

/** Titles by item id, asked for once; an item that the catalogue lacks is named by its id. */
export async function titles(ids) {
  const missing = [...new Set(ids)].filter(id => !known.has(id));
  for (let from = 0; from < missing.length; from += 100) {
    const some = missing.slice(from, from + 100);
    const said = await ask("GET", `/v1/items?${query(some.map(id => ["ids", id]))}`);
    for (const item of said.items) known.set(item.item_id, item);
    for (const id of some) if (!known.has(id)) known.set(id, { item_id: id, title: id, semantic_id: [] });
  }
  return new Map(ids.map(id => [id, known.get(id).title]));
}

export function remember(items) { for (const item of items) known.set(item.item_id, item); }
export const titleOf = id => known.get(id)?.title ?? id;
export const itemOf = id => known.get(id);
