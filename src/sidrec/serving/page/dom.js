// Elements, numbers and words. Text enters the document as text only: nothing here parses HTML.

export const at = id => document.getElementById(id);

/** An element with attributes, listeners (`on` + event) and children; null children are left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Set a length that the style sheet reads, in [0, 1]; allowed under the page's policy. */
export function share(element, value, name = "--share") {
  element.style.setProperty(name, Math.max(0, Math.min(1, value || 0)).toFixed(4));
  return element;
}

const whole = new Intl.NumberFormat("en");
export const digits = number => whole.format(number);
export const count = (number, word) => `${digits(number)} ${word}${number === 1 ? "" : "s"}`;

/** A probability in per cent, with as many digits as tell it from 0. */
export function percent(prob) {
  const value = 100 * prob;
  if (value === 0) return "0 %";
  if (value < 0.01) return "< 0.01 %";
  return `${value >= 99.95 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} %`;
}

export const dashed = codes => codes.join("-");

/** A semantic ID as a link into the tree. */
export function idLink(codes) {
  return make("a", { href: `#/tree/${dashed(codes)}`, class: "sid", "aria-label": `semantic ID ${dashed(codes)}, open in the tree` },
    codes.map(code => make("span", {}, String(code))));
}

export function say(text) { at("said").textContent = text; }

export function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
  if (entries.some(([value]) => value === chosen)) select.value = chosen;
}

/** Up and down move between the rows of a list, which has one stop for Tab. */
export function rove(rows, row) {
  for (const other of rows) other.tabIndex = other === row ? 0 : -1;
}
