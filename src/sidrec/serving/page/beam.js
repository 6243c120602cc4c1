// The beam of one request: a column a level, lines from each prefix to those that it became.

import { at, count, dashed, make, percent, rove, share, svg } from "./dom.js";

const ROW = 26; // px, as in the style sheet
const FEW = 20;
const CAUSES = {
  kept: "kept",
  fallen: "not among the best",
  unavailable: "unavailable",
  filter: "filter",
  exclude_viewed: "already seen",
  exclude_items: "excluded",
  no_item: "no such item",
};

/** The mass that enters a level and where it goes, widest words first. */
function massBar(level) {
  const parts = [["kept", level.kept], ["fallen", level.fallen], ...Object.entries(level.lost).reverse()];
  const bar = make("div", { class: "mass", role: "img", "aria-label": parts.map(([name, mass]) => `${CAUSES[name] ?? name} ${percent(mass)}`).join(", ") });
  const legend = make("ul", { class: "legend" });
  for (const [name, mass] of parts) {
    bar.append(share(make("span", { class: `part ${name}` }), level.entering ? mass / level.entering : 0));
    if (name === "kept" || mass >= 5e-5) {
      legend.append(make("li", {}, make("span", { class: `dot ${name}` }), `${CAUSES[name] ?? name} `, make("b", {}, percent(mass))));
    }
  }
  return [bar, legend];
}

export function drawBeam(story, whole) {
  const ranks = new Map(story.items.map(item => [dashed(item.semantic_id), item.rank]));
  const last = story.levels.length - 1;
  const few = whole ? Infinity : FEW;
  const columns = story.levels.map((level, depth) => {
    const shown = level.survivors.slice(0, few);
    const rows = shown.map((prefix, place) => row(story, depth, place, depth === last ? ranks : null));
    const list = make("ul", { class: "prefixes", "aria-label": `Level ${depth}` }, rows.map(button => make("li", {}, button)));
    const hidden = level.survivors.length - shown.length;
    const head = make("div", { class: "head" }, make("h3", {}, `Level ${depth}`),
      make("span", { class: "note" }, `${percent(level.entering)} enters`), ...massBar(level));
    return { head, list, rows, hidden, level, depth };
  });
  for (const { rows } of columns) rows.forEach((button, place) => { button.tabIndex = place ? -1 : 0; });
  const board = make("div", { class: "board" });
  board.style.setProperty("--lines", Math.max(...columns.map(({ head }) => head.querySelectorAll(".legend li").length)));
  columns.forEach(({ head, list, hidden, level, depth }) => {
    if (depth) board.append(links(columns[depth - 1].rows.length, level.survivors.slice(0, few)));
    board.append(make("section", { class: "level" }, head, list,
      hidden ? make("p", { class: "note" }, `and ${hidden} more`) : null, ...notTaken(level)));
  });
  at("beam").replaceChildren(board);
  at("beam-detail").textContent = "Choose a prefix to follow its line; arrow keys walk the beam. A cross marks a prefix that ends here.";
  wire(board, columns, story);
}

function row(story, depth, place, ranks) {
  const prefix = story.levels[depth].survivors[place];
  const rank = ranks?.get(dashed(prefix.codes));
  const dies = prefix.fate === "dies";
  const said = `${dashed(prefix.codes)}, ${prefix.name}, ${percent(prefix.prob)}, ${dies ? "dies at the next level" : rank ? `rank ${rank}` : "lives"}`;
  return share(make("button", { type: "button", class: `prefix ${prefix.fate}${rank ? " listed" : ""}`, "aria-label": said, "data-depth": depth, "data-place": place },
    make("span", { class: "code" }, String(prefix.codes[depth] ?? "end")),
    make("span", { class: "name" }, prefix.name),
    rank ? make("span", { class: "rank" }, `#${rank}`) : dies ? make("span", { class: "cross" }, "×") : null,
    make("span", { class: "prob" }, percent(prefix.prob))), Math.sqrt(prefix.prob));
}

function links(parents, children) {
  const height = Math.max(parents, children.length) * ROW;
  const picture = svg("svg", { class: "links", viewBox: `0 0 40 ${height}`, width: "40", height: String(height), "aria-hidden": "true" });
  children.forEach((prefix, place) => {
    if (prefix.parent >= parents) return;
    const from = (prefix.parent + 0.5) * ROW, to = (place + 0.5) * ROW;
    picture.append(svg("path", {
      d: `M0 ${from}C20 ${from} 20 ${to} 40 ${to}`, "stroke-width": (0.7 + 9 * prefix.prob).toFixed(2),
      "data-parent": prefix.parent, "data-place": place,
    }));
  });
  return picture;
}

function notTaken(level) {
  const groups = new Map();
  for (const prefix of level.others) groups.set(prefix.fate, [...(groups.get(prefix.fate) ?? []), prefix]);
  const order = Object.keys(CAUSES).filter(name => groups.has(name));
  return order.map(name => {
    const mass = name === "fallen" ? level.fallen : level.lost[name];
    return make("details", { class: "others", open: mass >= 0.001 }, make("summary", {}, make("span", { class: `dot ${name}` }), CAUSES[name], make("b", {}, percent(mass))),
      make("ul", {}, groups.get(name).map(prefix => make("li", {},
        name === "no_item" ? make("span", { class: "sid" }, dashed(prefix.codes)) : make("a", { href: `#/tree/${dashed(prefix.codes)}`, class: "sid" }, dashed(prefix.codes)),
        make("span", { class: "name", title: prefix.name }, prefix.name), make("span", { class: "prob" }, percent(prefix.prob))))));
  });
}

/** Arrow keys walk the beam; the chosen prefix lights its line from the root to its ends. */
function wire(board, columns, story) {
  function light(depth, place) {
    board.querySelectorAll(".lit").forEach(element => element.classList.remove("lit"));
    const gaps = board.querySelectorAll("svg.links");
    const lit = (d, p) => columns[d].rows[p]?.classList.add("lit");
    for (let d = depth, p = place; d >= 0; d--) {
      lit(d, p);
      if (d) gaps[d - 1].querySelector(`[data-place="${p}"]`)?.classList.add("lit");
      p = story.levels[d].survivors[p].parent;
    }
    let here = new Set([place]);
    for (let d = depth + 1; d < columns.length; d++) {
      const next = new Set();
      story.levels[d].survivors.forEach((prefix, p) => {
        if (!here.has(prefix.parent)) return;
        next.add(p);
        lit(d, p);
        gaps[d - 1].querySelector(`[data-place="${p}"]`)?.classList.add("lit");
      });
      here = next;
    }
    const prefix = story.levels[depth].survivors[place];
    const chain = [];
    for (let d = depth, p = place; d >= 0; d--) {
      const one = story.levels[d].survivors[p];
      const above = d ? story.levels[d - 1].survivors[one.parent].prob : 1;
      chain.unshift(percent(one.prob / above));
      p = one.parent;
    }
    at("beam-detail").replaceChildren(make("a", { href: `#/tree/${dashed(prefix.codes)}`, class: "sid" }, dashed(prefix.codes)), ` ${prefix.name} · ${chain.join(" × ")}${chain.length > 1 ? ` = ${percent(prefix.prob)}` : ""} · ${count(prefix.num_items, "allowed item")}`);
  }
  board.addEventListener("focusin", event => {
    const button = event.target.closest("button.prefix");
    if (!button) return;
    rove(columns[button.dataset.depth].rows, button);
    light(Number(button.dataset.depth), Number(button.dataset.place));
  });
  board.addEventListener("click", event => event.target.closest("button.prefix")?.focus());
  board.addEventListener("keydown", event => {
    const button = event.target.closest("button.prefix");
    if (!button) return;
    const depth = Number(button.dataset.depth), place = Number(button.dataset.place);
    const next = {
      ArrowDown: () => columns[depth].rows[place + 1],
      ArrowUp: () => columns[depth].rows[place - 1],
      ArrowLeft: () => columns[depth - 1]?.rows[story.levels[depth].survivors[place].parent],
      ArrowRight: () => columns[depth + 1]?.rows[story.levels[depth + 1].survivors.findIndex(prefix => prefix.parent === place)],
    }[event.key]?.();
    if (next) { event.preventDefault(); next.focus(); }
  });
}

/** What the whole search comes to, in one sentence. */
export function beamSays(story) {
  const total = name => story.levels.reduce((sum, level) => sum + (name === "fallen" ? level.fallen : level.lost[name] ?? 0), 0);
  const rules = Object.keys(story.levels[0]?.lost ?? {}).filter(name => name !== "no_item");
  const reached = story.levels.at(-1)?.survivors.reduce((sum, prefix) => sum + prefix.prob, 0) ?? 0;
  const lost = rules.map(name => `${CAUSES[name] ?? name} ${percent(total(name))}`).join(", ");
  return `${story.generator}, ${story.beam_width} beams: ${percent(reached)} of the probability ends in them. `
    + `Over all levels ${percent(total("fallen"))} was not among the best, ${percent(total("no_item"))} went to codes of no item`
    + (lost ? `, rules took ${lost}.` : ".")
    + (story.renormalise ? " The survivors of each level share what codes without an item lose." : "")
    + (story.system !== story.generator ? ` ${story.system} ranks what this beam proposes together with its other members.` : "");
}
