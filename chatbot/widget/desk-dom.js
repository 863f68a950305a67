/** Small things that every part of the desk's page uses. */

export const $ = (id) => document.getElementById(id);

export function make(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

/** Write only what is new: a live region announces every write. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Fill `node` with what `build()` returns, if `value` is not what it was filled for before. */
export function refill(node, value, build) {
  const seal = JSON.stringify(value);
  if (node.dataset.seal === seal) return;
  node.dataset.seal = seal;
  node.replaceChildren(...build());
}

export function duration(ms) {
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 1) return `${Math.max(0, Math.floor(ms / 1000))} s`;
  if (minutes < 60) return `${minutes} min`;
  return minutes < 1440 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(minutes / 1440)} d`;
}

export const shortName = (visitor) => `Visitor ${visitor.replace(/^[vu]-/u, '').slice(0, 8)}`;

/** A person as a circle with their initial; the name is for those who cannot see it. */
export function face({ username }, says = '') {
  const node = make('span', 'face', username.slice(0, 2));
  node.title = says ? `${username} ${says}` : username;
  node.setAttribute('role', 'img');
  node.setAttribute('aria-label', node.title);
  return node;
}
