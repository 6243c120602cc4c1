// The page: what is asked (history and rules), and the views that show what comes back.

import * as api from "./api.js";
import { beamSays, drawBeam } from "./beam.js";
import { at, count, digits, make, options, say, share } from "./dom.js";
import { drawItems, moves } from "./lists.js";
import { drawHistory, wirePicker } from "./picker.js";
import { drawTree, wireTree } from "./tree.js";

const VIEWS = ["list", "beam", "what-if", "side-by-side", "search", "tree"];
const OPS = [["eq", "is"], ["ne", "is not"], ["lt", "<"], ["le", "≤"], ["gt", ">"], ["ge", "≥"], ["contains", "contains"], ["exists", "exists"]];
const WEIGHED = 12;
const state = { history: [], before: null, active: null, models: [], systems: [] };
let turn = 0;

// What is asked -----------------------------------------------------------------------------------

function rules() {
  const asked = { k: Number(at("k").value), exclude_viewed: at("seen").checked };
  const field = at("field").value, text = at("value").value.trim(), op = at("op").value;
  if (field && (text || op === "exists")) {
    const kind = state.active.fields.find(one => one.name === field).kind;
    const number = kind.endsWith("number"), value = op === "exists" ? text !== "no" : number ? Number(text) : kind === "boolean" ? text === "true" : text;
    asked.filter = { field, op, value };
  }
  return asked;
}

const ids = history => history.map(item => item.item_id);
const request = (more = {}) => ({ history: ids(state.history), system: at("system").value || undefined, ...rules(), ...more });

async function listOf(body, model = null) {
  const answer = await (model ? api.beside(model, body) : api.recommend(body));
  await api.titles([...ids(answer.items), ...answer.items.map(item => item.reason.item_id).filter(Boolean)]);
  return answer;
}

function setHistory(history, fresh = false) {
  state.history = history;
  if (fresh) state.before = null;
  drawHistory(history, setHistory);
  refresh();
}

const add = item => setHistory([...state.history, item]);
const addButton = item => make("button", { type: "button", class: "small", "aria-label": `Add ${api.titleOf(item.item_id)} to the history`, onclick: () => add(api.itemOf(item.item_id) ?? item) }, "add");

// Views -------------------------------------------------------------------------------------------

const drawing = { list: showList, beam: showBeam, "what-if": showWhatIf, "side-by-side": showSides, search: showSearch, tree: showTree };

function place() {
  const [name, rest = ""] = location.hash.slice(2).split("/");
  return { name: VIEWS.includes(name) ? name : "list", rest };
}

async function refresh() {
  const mine = ++turn, { name } = place();
  if (name !== "what-if") state.before = null;
  for (const view of VIEWS) at(`view-${view}`).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!state.active) return;
  at("main").setAttribute("aria-busy", "true");
  try {
    await drawing[name](() => mine === turn);
    if (mine === turn) clearProblem();
  } catch (problem) {
    if (mine === turn) failed(problem);
  } finally {
    if (mine === turn) at("main").removeAttribute("aria-busy");
  }
}

async function showList(current) {
  const answer = await listOf(request());
  if (!current()) return;
  drawItems(at("list"), answer.items, { more: item => [addButton(item)], asked: state.history.length ? state.history : null });
  const removed = answer.applied_filters.map(rule => `${rule.kind.replace("_", " ")} removed ${digits(rule.removed)}`);
  const notes = [
    state.history.length ? `After ${count(state.history.length, "item")}` : "No history: popular items",
    ...removed, `${answer.took_ms.toFixed(1)} ms`,
    answer.degraded ? `degraded: ${answer.degraded_reason}` : "",
    answer.skipped_items.length ? `unknown: ${answer.skipped_items.join(", ")}` : "",
  ];
  at("list-note").textContent = notes.filter(Boolean).join(" · ");
  say(`${count(answer.items.length, "recommendation")}, first ${api.titleOf(answer.items[0]?.item_id ?? "none")}`);
}

async function showBeam(current) {
  at("beam-detail").replaceChildren();
  if (!state.history.length) {
    at("beam").replaceChildren();
    at("beam-note").textContent = "A beam needs a history of at least one item.";
    return;
  }
  try {
    const story = await api.trace(request());
    if (!current()) return;
    at("beam-note").textContent = beamSays(story);
    drawBeam(story, at("whole").checked);
    say(at("beam-note").textContent);
  } catch (problem) {
    if (problem.code !== "no_beam" || !current()) throw problem;
    at("beam").replaceChildren();
    at("beam-note").textContent = `No beam to show: ${problem.message}.${problem.hint ? ` ${problem.hint[0].toUpperCase()}${problem.hint.slice(1)}.` : ""}`;
  }
}

async function showWhatIf(current) {
  const answer = await listOf(request());
  if (!current()) return;
  if (!state.history.length) state.before = null;
  const before = state.before ?? { history: state.history, items: answer.items };
  if (state.history.length) state.before = before;
  const said = moves(before.items, answer.items);
  drawItems(at("before"), before.items, { marks: said.marksBefore });
  drawItems(at("after"), answer.items, { marks: said.marksAfter, more: item => [addButton(item)] });
  const same = ids(before.history).join("\n") === ids(state.history).join("\n");
  at("what-if-note").textContent = same && said.stay === answer.items.length && !said.moved
    ? "Edit the history or the rules: the list before stays on the left."
    : `History of ${digits(before.history.length)} before, ${digits(state.history.length)} now: ${digits(said.stay)} items stay (${digits(said.moved)} at another place), ${digits(said.fresh)} are new.`;
  say(at("what-if-note").textContent);
  const body = at("weights").tBodies[0], newest = state.history.slice(-WEIGHED);
  const first = state.history.length - newest.length;
  const listed = new Set(ids(answer.items));
  const changes = await Promise.all(newest.map(async (_, i) => {
    const without = state.history.filter((_, at) => at !== first + i);
    const other = await api.recommend(request({ history: ids(without), exclude_items: [state.history[first + i].item_id] }));
    return other.items.filter(item => !listed.has(item.item_id)).length;
  }));
  if (!current()) return;
  const most = Math.max(answer.items.length, 1);
  body.replaceChildren(...newest.map((item, i) => make("tr", {},
    make("th", { scope: "row", class: "title", title: item.title }, item.title),
    make("td", {}, share(make("span", { class: "meter" }, `${changes[i]} of ${answer.items.length}`), changes[i] / most)),
    make("td", {}, make("button", { type: "button", class: "small", "aria-label": `Take ${item.title} out of the history`, onclick: () => setHistory(state.history.filter((_, at) => at !== first + i)) }, "take out")))));
}

async function showSides(current) {
  const chosen = ["left-system", "right-system"].map(id => at(id).value);
  at("sides-note").textContent = "Asking both; another bundle takes some seconds to load.";
  const [left, right] = await Promise.all(chosen.map(value => {
    const name = value.slice(2);
    return value[0] === "m" ? listOf(request({ system: undefined, timeout_ms: 60_000 }), name) : listOf(request({ system: name }));
  }));
  if (!current()) return;
  const said = moves(left.items, right.items, ["only", "only"]), foreign = chosen.map(value => value[0] === "m");
  drawItems(at("left"), left.items, { marks: said.marksBefore, foreign: foreign[0] });
  drawItems(at("right"), right.items, { marks: said.marksAfter, foreign: foreign[1] });
  at("sides-note").textContent = `${digits(said.stay)} items are in both lists, ${digits(said.stay - said.moved)} at the same place. Left: ${left.model} ${left.model_version}, right: ${right.model} ${right.model_version}.`;
  say(at("sides-note").textContent);
}

async function showSearch(current) {
  const missing = !state.active.has_search, query = at("query").value.trim();
  for (const id of ["query", "personal"]) at(id).disabled = missing;
  at("search-form").querySelector("button").disabled = missing;
  if (missing || !query) {
    at("search-note").textContent = missing
      ? "This bundle has no search part; `sidrec search-fit` adds one. The box on the left finds items by title."
      : "Type what you look for.";
    at("found").replaceChildren();
    return;
  }
  const { k, filter } = rules();
  const answer = await api.search({ query, k, filter, history: at("personal").checked ? ids(state.history) : undefined });
  await api.titles(ids(answer.items));
  if (!current()) return;
  drawItems(at("found"), answer.items, { more: item => [addButton(item)] });
  at("search-note").textContent = `${count(answer.items.length, "item")} · ${answer.took_ms.toFixed(1)} ms`;
  say(at("search-note").textContent);
}

function showTree() { return drawTree(place().rest, add); }

// Problems and keys -------------------------------------------------------------------------------

function failed(problem) {
  const box = at("problem");
  if (problem.status === 401 || problem.status === 403) at("key-form").hidden = false;
  box.textContent = problem.status === 401 ? "This server needs an API key." : `${problem.message}${problem.hint ? ` (${problem.hint})` : ""}`;
  box.hidden = false;
  if (!(problem instanceof api.Problem)) throw problem;
}

function clearProblem() { at("problem").hidden = true; }

// Wiring ------------------------------------------------------------------------------------------

function drawFacts() {
  const { active } = state;
  const facts = [["model", `${active.name} ${active.version}`], ["items", digits(active.num_items)], ["IDs", active.num_codes.join(" × ")], ["generator", active.generator]];
  at("facts").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

async function begin() {
  const said = await api.models();
  Object.assign(state, { active: said.active, models: said.models, systems: said.systems });
  drawFacts();
  const systems = said.systems.map(name => [name, name]);
  options(at("system"), systems, at("system").value);
  options(at("field"), [["", "no filter"], ...said.active.fields.map(({ name }) => [name, name])], at("field").value);
  const others = said.models.filter(model => !model.active).map(model => [`m:${model.name}`, `bundle ${model.name}`]);
  const sides = [...said.systems.map(name => [`s:${name}`, `${said.active.name}: ${name}`]), ...others];
  options(at("left-system"), sides, sides[0][0]);
  options(at("right-system"), sides, (sides[said.systems.length] ?? sides[1] ?? sides[0])[0]);
  await refresh();
}

async function example() {
  const popular = (await api.findItems("", 50)).items;
  const seed = popular[Math.floor(Math.random() * popular.length)];
  const like = await api.similar({ item_id: seed.item_id, k: 2 });
  await api.titles(ids(like.items));
  api.remember([seed]);
  setHistory([...like.items.map(item => api.itemOf(item.item_id)), seed], true);
}

async function loadUser(event) {
  event.preventDefault();
  const user = at("user").value.trim();
  if (!user) return;
  const { items } = await api.userHistory(user);
  await api.titles(items);
  setHistory(items.map(id => api.itemOf(id)), true);
  if (!items.length) say("no events of this user");
}

const guarded = run => (...given) => run(...given)?.catch?.(failed);

options(at("op"), OPS);
drawHistory(state.history, setHistory);
wirePicker(add, failed);
wireTree(() => refresh());
at("example").addEventListener("click", guarded(example));
at("clear").addEventListener("click", () => setHistory([], true));
at("user-form").addEventListener("submit", guarded(loadUser));
at("keep").addEventListener("click", () => { state.before = null; refresh(); });
at("search-form").addEventListener("submit", event => { event.preventDefault(); refresh(); });
at("key-form").addEventListener("submit", event => {
  event.preventDefault();
  api.setKey(at("key").value.trim());
  begin().then(() => { at("key-form").hidden = true; clearProblem(); }, failed);
});
for (const id of ["system", "k", "seen", "field", "op", "value", "whole", "left-system", "right-system"]) at(id).addEventListener("change", refresh);
document.querySelector(".skip").addEventListener("click", event => { event.preventDefault(); at("main").focus(); });
addEventListener("hashchange", refresh);
guarded(begin)();
