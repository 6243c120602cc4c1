// Lists of items: with reasons, and with marks of what moved between two of them.

import * as api from "./api.js";
import { count, dashed, digits, idLink, make, percent, share } from "./dom.js";

/** Width of the bar of each score, relative to the best: probabilities where scores are logs. */
function widths(items) {
  const scores = items.map(item => item.score), best = scores[0], least = Math.min(...scores);
  if (best <= 0) return scores.map(score => Math.exp(score - best));
  return scores.map(score => (least < 0 ? (score - least) / (best - least || 1) : score / best));
}

function reasonOf(item) {
  const { kind, text, item_id: like, shared_codes: shared } = item.reason;
  if (!like) return make("span", { class: "reason" }, text);
  const codes = `${shared} of ${item.semantic_id.length} codes`;
  return make("span", { class: "reason" }, kind === "similar" ? `shares ${codes} with ` : `like your `,
    make("cite", {}, api.titleOf(like)), kind === "similar" ? "" : `: ${codes} shared`);
}

/** The list of an answer. `more(item)` gives buttons, `marks` what stands before each title, `asked`
    the history to explain by; IDs of a `foreign` bundle are in no tree that this page shows. */
export function drawItems(list, items, { more = () => [], marks = new Map(), asked = null, foreign = false } = {}) {
  const bars = widths(items);
  list.replaceChildren(...items.map((item, place) => {
    const row = make("li", { "data-item": item.item_id });
    const title = api.titleOf(item.item_id);
    const mark = marks.get(item.item_id);
    const line = make("div", { class: "line" },
      make("span", { class: "rank" }, String(item.rank)),
      mark ? make("span", { class: `mark ${mark.kind}`, title: mark.said }, mark.text, make("span", { class: "aside" }, ` ${mark.said}`)) : null,
      make("span", { class: "title", title: `${title} (${item.item_id})` }, title),
      share(make("span", { class: "score", title: `score by ${item.source}` }, Number.isInteger(item.score) ? digits(item.score) : item.score.toFixed(3)), bars[place]),
    );
    const under = make("div", { class: "under" }, foreign ? make("span", { class: "sid" }, dashed(item.semantic_id)) : idLink(item.semantic_id), make("span", { class: "source" }, item.source), reasonOf(item),
      make("span", { class: "buttons" }, asked ? whyButton(item, row, asked) : null, ...more(item)));
    row.append(line, under);
    return row;
  }));
}

function whyButton(item, row, asked) {
  const button = make("button", { type: "button", class: "small", "aria-expanded": "false", "aria-label": `Why ${api.titleOf(item.item_id)}` }, "why");
  button.addEventListener("click", async () => {
    const open = row.querySelector(".why");
    button.setAttribute("aria-expanded", String(!open));
    if (open) { open.remove(); return; }
    const box = make("div", { class: "why" }, "…");
    row.append(box);
    try {
      const { explanation } = await api.explain({ history: asked.map(entry => entry.item_id), item_id: item.item_id });
      box.replaceChildren(...drawWhy(explanation));
    } catch (problem) {
      box.textContent = problem.message;
    }
  });
  return button;
}

function drawWhy(explanation) {
  const levels = make("table", {}, make("caption", {}, "What the generator makes of each code"),
    make("tbody", {}, explanation.levels.map((level, place) => make("tr", {},
      make("th", { scope: "row" }, `level ${place}`),
      make("td", { class: "code" }, String(level.code)),
      make("td", {}, share(make("span", { class: "meter" }, percent(Math.exp(level.log_prob))), Math.exp(level.log_prob))),
      level.thought ? make("td", {}, `thinks of ${level.thought.words.join(", ")} (${percent(level.thought.probability)})`) : null))));
  const near = make("table", {}, make("caption", {}, "Nearest in the history"),
    make("tbody", {}, explanation.history.slice(0, 5).map(entry => make("tr", {},
      make("td", { class: "title" }, entry.title),
      make("td", {}, count(entry.shared_codes, "code")),
      make("td", {}, `cosine ${entry.similarity.toFixed(2)}`)))));
  return [make("p", { class: "note" }, `Probability of ${dashed(explanation.levels.map(level => level.code))}: ${percent(Math.exp(explanation.log_prob))}`), levels, near];
}

/** What became of each item from one list to another: marks for both, and counts. `only` names what
    the first and the second list have alone. */
export function moves(before, after, only = ["gone", "new"]) {
  const was = new Map(before.map(item => [item.item_id, item.rank]));
  const is = new Map(after.map(item => [item.item_id, item.rank]));
  const marksAfter = new Map(), marksBefore = new Map();
  let stay = 0, moved = 0;
  for (const [id, rank] of is) {
    const old = was.get(id);
    if (old === undefined) marksAfter.set(id, { kind: "new", text: only[1], said: "not in the other list" });
    else {
      stay += 1;
      if (old === rank) marksAfter.set(id, { kind: "same", text: "=", said: "same place" });
      else {
        moved += 1;
        const up = old > rank;
        marksAfter.set(id, { kind: up ? "up" : "down", text: `${up ? "▲" : "▼"} ${Math.abs(old - rank)}`, said: `${up ? "up" : "down"} from ${old}` });
      }
    }
  }
  for (const id of was.keys()) {
    marksBefore.set(id, is.has(id)
      ? { kind: "same", text: `→ ${is.get(id)}`, said: "its place in the other list" }
      : { kind: "gone", text: only[0], said: "not in the other list" });
  }
  return { marksBefore, marksAfter, stay, moved, fresh: is.size - stay };
}
