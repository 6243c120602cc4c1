// As much of a document as the script of the page uses; no layout, no events but clicks.
class Element {
  constructor(tag) {
    Object.assign(this, { tagName: tag.toUpperCase(), attributes: {}, nodes: [], listeners: {}, style: { setProperty: (key, value) => { this.style.heat = value; } }, textContent: "", value: "" });
  }
  get children() { return this.nodes.filter(node => node instanceof Element); }
  setAttribute(key, value) { this.attributes[key] = value; }
  getAttribute(key) { return this.attributes[key] ?? null; }
  removeAttribute(key) { delete this.attributes[key]; }
  append(...nodes) { for (const node of nodes) { if (node instanceof Element) node.parent = this; this.nodes.push(node); } }
  replaceChildren(...nodes) { this.nodes = []; this.append(...nodes); }
  remove() { this.parent.nodes = this.parent.nodes.filter(node => node !== this); }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  click() { this.listeners.click(); }
  querySelectorAll(tag) { return this.children.flatMap(child => [...(child.tagName === tag.toUpperCase() ? [child] : []), ...child.querySelectorAll(tag)]); }
  text() { return this.textContent + this.nodes.map(node => (node instanceof Element ? node.text() : String(node))).join(" "); }
}
const byId = {};
const put = (id, text) => { byId[id] = new Element("div"); byId[id].textContent = text; };
["search", "said", "found", "columns", "chosen"].forEach(id => put(id, ""));
const document = { getElementById: id => byId[id], createElement: tag => new Element(tag), querySelectorAll: () => [] };
const location = { hash: "" };
const addEventListener = () => {};
