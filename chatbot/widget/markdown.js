/**
 * Light Markdown to DOM nodes: paragraphs, lists, code, bold, italics, links.
 *
 * Text of models and of people is untrusted. Nothing here parses HTML: every character ends up in
 * a text node, every element is made by name from a fixed list, and links are http(s) only.
 */

const INLINE = new RegExp(
  [
    '`([^`\\n]+)`', // 1 code
    '\\*\\*(?=\\S)([^\\n]+?\\S|\\S)\\*\\*', // 2 bold
    '(?<![\\w*])\\*(?=[^\\s*])([^*\\n]*?[^\\s*])\\*(?![\\w*])', // 3 italics
    '(?<!\\w)_(?=[^\\s_])([^_\\n]*?[^\\s_])_(?!\\w)', // 4 italics
    '\\[([^\\]\\n]{1,300})\\]\\(([^\\s()<>]{1,2000})\\)', // 5 text, 6 address
    '(https?://[^\\s<>"\'`*]{1,2000})', // 7 bare address
  ].join('|'),
  'gu',
);

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

let hosts = []; // where links may lead, with subdomains; empty: anywhere

/** Follow links to these hosts only, and show all others as the text that they are. */
export function allowLinks(names) {
  hosts = names;
}

/** The address as a URL if it is one that may be followed, else null. */
export function safeUrl(address) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  const web = url.protocol === 'https:' || url.protocol === 'http:';
  // user:password@host is a disguise in a chat, never an address that a shop gives
  const listed = !hosts.length || hosts.some((host) => url.hostname === host || url.hostname.endsWith(`.${host}`));
  return web && listed && !url.username && !url.password ? url : null;
}

function link(text, address) {
  const url = safeUrl(address);
  if (!url) return null;
  // a text that reads like another site's address would hide where the link leads
  const disguised = /^(https?:\/\/)?[\w-]+(\.[\w-]+)+/iu.test(text) && !text.includes(url.hostname);
  const node = element('a', disguised ? url.href : text);
  node.href = url.href;
  node.target = '_blank';
  node.rel = 'noopener noreferrer nofollow';
  node.title = url.href;
  return node;
}

/** Characters that end a sentence, not an address. */
function splitTrailing(address) {
  const end = /[.,;:!?)\]}'"]+$/u.exec(address)?.[0] ?? '';
  return end ? [address.slice(0, -end.length), end] : [address, ''];
}

function inlineNodes(match) {
  const [whole, code, bold, star, underscore, text, address, bare] = match;
  if (code !== undefined) return [element('code', code)];
  if (bold !== undefined) return [element('strong', ...inline(bold))];
  const italics = star ?? underscore;
  if (italics !== undefined) return [element('em', ...inline(italics))];
  if (bare !== undefined) {
    const [url, end] = splitTrailing(bare);
    return [link(url, url) ?? url, end];
  }
  return [link(text, address) ?? whole];
}

function inline(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > from) nodes.push(text.slice(from, match.index));
    nodes.push(...inlineNodes(match));
    from = match.index + match[0].length;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes.filter((node) => node !== '');
}

const FENCE = /^\s*```/u;
const BULLET = /^\s*[-*•]\s+(?=\S)/u;
const NUMBER = /^\s*(\d{1,3})[.)]\s+(?=\S)/u;

function fenced(lines, start) {
  let end = start + 1;
  while (end < lines.length && !FENCE.test(lines[end])) end += 1;
  const code = element('code', lines.slice(start + 1, end).join('\n'));
  return [element('pre', code), Math.min(end + 1, lines.length)];
}

function list(lines, start, marker) {
  const node = document.createElement(marker === NUMBER ? 'ol' : 'ul');
  if (marker === NUMBER) node.start = Number(NUMBER.exec(lines[start])[1]);
  let at = start;
  for (; at < lines.length && marker.test(lines[at]); at += 1) {
    node.append(element('li', ...inline(lines[at].replace(marker, ''))));
  }
  return [node, at];
}

function paragraph(lines, start) {
  let end = start + 1;
  const special = (line) => FENCE.test(line) || BULLET.test(line) || NUMBER.test(line);
  while (end < lines.length && lines[end].trim() && !special(lines[end])) end += 1;
  return [element('p', ...inline(lines.slice(start, end).join('\n'))), end];
}

function block(lines, at) {
  if (FENCE.test(lines[at])) return fenced(lines, at);
  if (BULLET.test(lines[at])) return list(lines, at, BULLET);
  if (NUMBER.test(lines[at])) return list(lines, at, NUMBER);
  return paragraph(lines, at);
}

/** `text` as a fragment. Unfinished Markdown (a reply that is still growing) stays as it is. */
export function render(text) {
  const fragment = document.createDocumentFragment();
  const lines = text.split('\n');
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [node, next] = block(lines, at);
    fragment.append(node);
    at = next;
  }
  return fragment;
}
