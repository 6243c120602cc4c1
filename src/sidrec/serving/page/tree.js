// The tree of semantic IDs, fetched a prefix at a time.

import * as api from "./api.js";
import { at, count, dashed, digits, idLink, make, rove, say, share } from "./dom.js";

const PAGE = 20;
const fetched = new Map();
let asked = 0, version = null;

async function node(prefix) {
  if (!fetched.has(prefix)) {
    const said = await api.tree(prefix, 0, PAGE);
    if (said.catalogue_version !== version) { fetched.clear(); version = said.catalogue_version; }
    api.remember(said.items);
    fetched.set(prefix, said);
  }
  return fetched.get(prefix);
}

const order = () => at("order").value;

function column(said, open) {
  const by = order(), heat = by === "code" ? "num_items" : by;
  const branches = [...said.branches].sort((a, b) => (by === "code" ? a.code - b.code : b[by] - a[by] || a.code - b.code));
  const most = Math.max(1, ...branches.map(branch => branch[heat])), depth = said.prefix.length;
  const rows = branches.map(branch => share(make("a", {
    href: `#/tree/${dashed([...said.prefix, branch.code])}`, "aria-current": branch.code === open ? "true" : null,
    title: `most bought: ${branch.favourite}`,
  }, make("span", { class: "code" }, String(branch.code)), make("span", { class: "name" }, branch.num_items > 1 && branch.name || branch.favourite),
  branch.num_available < branch.num_items ? make("span", { class: "note" }, `${digits(branch.num_available)} of`) : null,
  make("span", { class: "prob" }, digits(branch[heat]))), Math.sqrt(branch[heat] / most), "--heat"));
  rove(rows, rows.find(row => row.getAttribute("aria-current")) ?? rows[0]);
  return make("section", { class: "level", "aria-label": `Level ${depth}` },
    make("div", { class: "head" }, make("h3", {}, `Level ${depth}`),
      make("span", { class: "note" }, `${digits(branches.length)} of ${digits(said.num_codes[depth])} codes${heat === "events" ? ", by training events" : ", by items"}`)),
    make("ul", { class: "codes" }, rows.map(row => make("li", {}, row))));
}

function shelfRow(item, place, add) {
  return make("li", { "data-item": item.item_id }, make("div", { class: "line" },
    make("span", { class: "rank" }, String(place + 1)),
    make("span", { class: "title", title: `${item.title} (${item.item_id})` }, item.title),
    item.available ? null : make("span", { class: "mark gone" }, "unavailable"),
    idLink(item.semantic_id), make("span", { class: "note" }, count(item.events, "event")),
    make("button", { type: "button", class: "small", "aria-label": `Add ${item.title} to the history`, onclick: () => add(item) }, "add")));
}

/** Draw the tree open at a prefix such as "12-200". */
export async function drawTree(prefix, add) {
  const mine = ++asked, codes = prefix === "" ? [] : prefix.split("-").map(Number);
  const nodes = await Promise.all(codes.map((_, depth) => dashed(codes.slice(0, depth))).concat(prefix).map(node));
  if (mine !== asked) return;
  const here = nodes.at(-1), columns = at("columns");
  const focused = columns.contains(document.activeElement);
  const tops = [...columns.querySelectorAll("ul")].map(list => list.scrollTop);
  columns.replaceChildren(...nodes.filter(said => said.branches.length).map((said, depth) => column(said, codes[depth])));
  columns.querySelectorAll("ul").forEach((list, depth) => {
    list.scrollTop = tops[depth] ?? 0;
    const open = list.querySelector("[aria-current]");
    if (open && (open.offsetTop < list.scrollTop || open.offsetTop > list.scrollTop + list.clientHeight - 30)) list.scrollTop = open.offsetTop - 60;
  });
  if (focused) columns.querySelectorAll("section")[Math.max(codes.length - 1, 0)]?.querySelector("[aria-current], a")?.focus();
  columns.scrollLeft = columns.scrollWidth;
  at("tree-note").textContent = `${count(here.num_items, "item")}${here.num_available < here.num_items ? ` (${digits(here.num_available)} available)` : ""}, ${count(here.events, "training event")} under ${prefix || "the root"}.`;
  at("shelf-title").textContent = prefix ? `Items under ${prefix}` : "The most bought items";
  at("shelf").replaceChildren(...here.items.map((item, place) => shelfRow(item, place, add)));
  const more = at("more");
  const shown = () => at("shelf").children.length;
  more.hidden = shown() >= here.num_items;
  more.onclick = async () => {
    const said = await api.tree(prefix, shown(), PAGE);
    api.remember(said.items);
    at("shelf").append(...said.items.map((item, place) => shelfRow(item, shown() + place, add)));
    more.hidden = shown() >= here.num_items;
  };
  say(at("tree-note").textContent);
}

export function wireTree(redraw) {
  at("order").addEventListener("change", redraw);
  at("columns").addEventListener("keydown", event => {
    const row = event.target.closest("a");
    if (!row) return;
    const list = row.closest("ul"), section = row.closest("section");
    const next = {
      ArrowDown: () => row.parentElement.nextElementSibling?.firstElementChild,
      ArrowUp: () => row.parentElement.previousElementSibling?.firstElementChild,
      ArrowLeft: () => section.previousElementSibling?.querySelector("a[aria-current]"),
      ArrowRight: () => (row.getAttribute("aria-current") ? section.nextElementSibling?.querySelector("a[tabindex='0']") : (row.click(), null)),
    }[event.key]?.();
    if (event.key.startsWith("Arrow")) event.preventDefault();
    if (next) { rove(list.contains(next) ? list.querySelectorAll("a") : [], next); next.tabIndex = 0; next.focus(); }
  });
}
