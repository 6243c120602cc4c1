// The history: found as one types, edited in place.

import * as api from "./api.js";
import { at, count, digits, idLink, make, say } from "./dom.js";

const WAIT_MS = 120;

/** Wires the search box; `choose(item)` takes the item that was picked. */
export function wirePicker(choose, failed) {
  const input = at("item-input"), list = at("item-options");
  let found = [], active = -1, asked = 0, timer = 0;

  function close() {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    active = -1;
  }

  function activate(place) {
    active = place;
    [...list.children].forEach((option, i) => option.setAttribute("aria-selected", String(i === place)));
    if (place >= 0) {
      input.setAttribute("aria-activedescendant", list.children[place].id);
      list.children[place].scrollIntoView({ block: "nearest" });
    }
  }

  function pick(place) {
    choose(found[place]);
    input.value = "";
    close();
  }

  async function look() {
    const mine = ++asked;
    try {
      const said = await api.findItems(input.value.trim(), 10);
      if (mine !== asked) return;
      found = said.items;
      api.remember(found);
      list.replaceChildren(...found.map((item, place) => make("li", {
        id: `option-${place}`, role: "option", "aria-selected": "false",
        onmousedown: event => { event.preventDefault(); pick(place); },
      }, make("span", { class: "title" }, item.title), make("span", { class: "note" }, `${item.item_id} · ${digits(item.events)} events`))));
      if (!found.length) list.replaceChildren(make("li", { class: "note" }, "nothing found"));
      list.hidden = false;
      input.setAttribute("aria-expanded", "true");
      active = -1;
      say(`${count(said.total, "item")} found`);
    } catch (problem) { failed(problem); }
  }

  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(look, WAIT_MS); });
  input.addEventListener("focus", () => { if (input.value === "" && list.hidden) look(); });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", event => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) { look(); return; }
      const step = event.key === "ArrowDown" ? 1 : -1;
      if (found.length) activate((active + step + found.length) % found.length);
    } else if (event.key === "Enter" && !list.hidden && found.length) {
      event.preventDefault();
      pick(Math.max(active, 0));
    } else if (event.key === "Escape") close();
  });
}

/** The items of the history with their buttons; `change(next, place)` takes the edited list. */
export function drawHistory(history, change) {
  const list = at("history");
  if (!history.length) {
    list.replaceChildren(make("li", { class: "note empty" }, "Nothing yet: popular items are shown."));
    return;
  }
  const moved = (from, to) => {
    const next = [...history];
    next.splice(to, 0, ...next.splice(from, 1));
    return next;
  };
  list.replaceChildren(...history.map((item, place) => {
    const title = item.title;
    const button = (text, said, next, to, disabled) => make("button", {
      type: "button", class: "small", "aria-label": `${said} ${title}`, title: said, disabled, "data-does": said,
      onclick: () => {
        change(next());
        const row = list.children[Math.min(to, list.children.length - 1)];
        (row?.querySelector(`[data-does="${said}"]:not(:disabled)`) ?? row?.querySelector("button") ?? at("item-input")).focus();
      },
    }, text);
    return make("li", { "data-item": item.item_id },
      make("span", { class: "title", title: `${title} (${item.item_id})` }, title),
      item.semantic_id?.length ? idLink(item.semantic_id) : null,
      make("span", { class: "buttons" },
        button("↑", "Earlier", () => moved(place, place - 1), place - 1, place === 0),
        button("↓", "Later", () => moved(place, place + 1), place + 1, place === history.length - 1),
        button("×", "Remove", () => history.filter((_, i) => i !== place), place, false)));
  }));
}
