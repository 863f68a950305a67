/**
 * A transcript as a list of messages on the page, for the visitor's chat and the agent's desk.
 *
 * `listItems` says what is to be seen (plain values), `Messages` keeps the page's elements in
 * step with it: an element is rebuilt only when its item changed, so that a growing reply costs
 * one bubble and a screen reader is not told everything again.
 */
import { locale, t } from './i18n.js';
import { render } from './markdown.js';

const GROUP_MS = 5 * 60_000; // one sender's messages closer than this share name and time

const FORMATS = {
  day: { weekday: 'long', day: 'numeric', month: 'long' },
  clock: { hour: '2-digit', minute: '2-digit' },
  moment: { weekday: 'long', hour: '2-digit', minute: '2-digit' },
};
const formats = new Map();

function format(name, at) {
  const key = `${name}:${locale}`;
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat(locale, FORMATS[name]));
  return formats.get(key).format(at);
}

export const clock = (at) => format('clock', at);

/** Day of the week and time, for a moment within a week; with the date for a later one. */
export function moment(at, now = Date.now()) {
  return at - now < 6 * 86_400_000 ? format('moment', at) : `${format('day', at)}, ${clock(at)}`;
}

function day(at, now = Date.now()) {
  const name = format('day', at);
  if (name === format('day', now)) return t('day.today');
  return name === format('day', now - 86_400_000) ? t('day.yesterday') : name;
}

/** What a status change is called, seen by a visitor (`staff` false) or by staff. */
export function statusLine(event, staff) {
  if (staff) return staffStatusLine(event, event.agent || event.actor || 'A person');
  const name = event.agent || event.actor;
  if (event.status === 'human') return name ? t('line.joined', { name }) : t('line.person_joined');
  if (event.status === 'waiting') return t('line.waiting');
  if (event.status === 'closed') return t('line.closed');
  return t(event.previous === 'closed' ? 'line.reopened' : 'line.bot');
}

function staffStatusLine(event, who) {
  const said = !['', 'claimed', 'released', 'closed', 'transferred', undefined].includes(event.reason);
  const why = said ? `: ${event.reason}` : '';
  if (event.status === 'human' && event.previous === 'human') return `${event.actor} handed over to ${who}${why}`;
  if (event.status === 'human') return `${who} took over${why}`;
  if (event.status === 'waiting') return `Waiting for a person${why}`;
  if (event.status === 'closed') return `Closed by ${who}${why}`;
  return `Back to the assistant${why}`;
}

const CUT = new Set(['stopped', 'length']);

function replyItem(event) {
  const failed = event.type === 'reply.failed';
  if (!event.text && !failed) return null; // stopped or handed over before its first word
  return {
    ...botItem(`r:${event.reply_id}`, event.text || '', event.at),
    tag: failed ? t('tag.failed') : CUT.has(event.finish_reason) ? t(`tag.${event.finish_reason}`) : '',
    bad: failed,
    version: event.version,
  };
}

function eventItem(event, staff) {
  const base = { key: `e:${event.offset}`, at: event.at };
  switch (event.type) {
    case 'message.created': {
      const from = event.role;
      const name = from === 'agent' ? event.author || t('role.agent') : t('role.visitor');
      // keyed by the client's id, so that a message keeps its place when it is acknowledged
      return { ...base, key: `m:${event.client_message_id}`, kind: 'message', from, name, text: event.text };
    }
    case 'note.created':
      if (!staff) return null; // the server sends visitors none; shown to none either
      return { ...base, key: `m:${event.client_message_id}`, kind: 'message', from: 'note', name: `${event.author} · private note`, text: event.text };
    case 'reply.completed':
    case 'reply.failed':
      return replyItem(event);
    case 'status.changed':
      return { ...base, kind: 'line', text: statusLine(event, staff) };
    case 'rating.given': {
      const words = event.comment ? `: ${event.comment}` : '';
      return { ...base, kind: 'line', text: staff ? `Rated ${event.score} of 5${words}` : t('line.rated', { count: event.score }) };
    }
    case 'visitor.described': {
      if (!staff) return null;
      const said = Object.entries(event.facts).map(([name, value]) => `${name}: ${value}`).join(' · ');
      const sources = { identity: 'Vouched for by the site', form: 'Left by the visitor', page: 'Said by the page' };
      return { ...base, kind: 'line', text: `${sources[event.source] ?? event.source}: ${said}` };
    }
    default:
      return null;
  }
}

const FINAL = new Set(['too_long', 'too_big', 'refused']); // the same words would be refused again

function pendingItem(entry, connected, viewer, errorText) {
  const note = entry.frame.type === 'note.add';
  const state = t(connected ? 'tag.sending' : 'tag.offline');
  return {
    key: `m:${entry.id}`,
    kind: 'message',
    from: note ? 'note' : viewer,
    name: note ? 'Private note' : '',
    text: entry.frame.text,
    at: entry.at,
    tag: entry.error ? errorText(entry.error) : state,
    failedId: entry.error ? entry.id : '',
    final: FINAL.has(entry.error?.code) && entry.frame.type === 'message.send',
    pending: true,
  };
}

/** Mark days, and which messages stand in a group of one sender. */
function arrange(items) {
  const arranged = [];
  let before = null;
  for (const item of items) {
    if (!before || day(before.at) !== day(item.at)) {
      arranged.push({ key: `d:${day(item.at)}`, kind: 'day', text: day(item.at), at: item.at });
      before = null;
    }
    const joined =
      item.kind === 'message' &&
      before?.kind === 'message' &&
      before.from === item.from &&
      before.name === item.name &&
      item.at - before.at < GROUP_MS;
    if (joined) before.last = false;
    before = { ...item, first: !joined, last: true };
    arranged.push(before);
  }
  return arranged;
}

/**
 * Everything to be seen, in order. `viewer`: `visitor` or `agent`; what the viewer's side wrote
 * stands on the right. Keys are stable from the first character to the reload.
 */
export function listItems(
  transcript,
  { viewer, entries = [], connected = true, greeting = '', extra = [], errorText = (error) => error.message },
) {
  const items = transcript.events.map((event) => eventItem(event, viewer === 'agent')).filter(Boolean);
  const lastAt = () => items.at(-1)?.at ?? Date.now();
  if (greeting) items.unshift({ ...botItem('greeting', greeting, items[0]?.at ?? Date.now()), timeless: true });
  if (transcript.live?.text) {
    const { replyId, text, version } = transcript.live;
    items.push({ ...botItem(`r:${replyId}`, text, lastAt()), live: true, version });
  }
  // a message that is not in the log yet comes after the reply that is being written
  const words = entries.filter((entry) => entry.frame.text); // others are not for the eye
  for (const entry of words) items.push(pendingItem(entry, connected, viewer, errorText));
  for (const item of extra) items.push({ at: lastAt(), ...item });
  return arrange(items).map((item) => ({ ...item, own: item.from === viewer }));
}

function botItem(key, text, at) {
  return { key, kind: 'message', from: 'bot', name: t('role.bot'), text, at };
}

function make(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

/** Words of people are shown as they were typed; those of the bot and of agents are Markdown. */
function fillText(node, item) {
  if (item.from === 'visitor' || item.from === 'note') node.replaceChildren(make('p', 'plain', item.text));
  else node.replaceChildren(render(item.text));
}

function footer(item, actions) {
  const foot = make('div', 'foot');
  if (item.tag) foot.append(make('span', 'tag', item.tag));
  if (item.failedId) {
    const edit = item.final && actions.edit;
    const button = make('button', 'retry', edit ? t('edit') : t('retry'));
    button.type = 'button';
    button.addEventListener('click', () => (edit || actions.retry)(item.failedId));
    foot.append(button);
  } else if (item.last && !item.live && !item.pending && !item.timeless) {
    const time = make('time', '', clock(item.at));
    time.dateTime = new Date(item.at).toISOString();
    foot.append(time);
  }
  return foot;
}

const SVG = 'http://www.w3.org/2000/svg';
const SHEETS = 'M9 9h10v10H9zM5 15V5h10';

function copyButton(item, copy) {
  const button = make('button', 'copy');
  const svg = document.createElementNS(SVG, 'svg');
  const path = document.createElementNS(SVG, 'path');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('aria-hidden', 'true');
  path.setAttribute('d', SHEETS);
  svg.append(path);
  button.append(svg);
  button.type = 'button';
  button.title = t('copy');
  button.setAttribute('aria-label', t('copy'));
  button.addEventListener('click', () => copy(item.text, button));
  return button;
}

function messageNode(item, actions) {
  const node = make('article', `message from-${item.from}`);
  const flags = { own: item.own, first: item.first, last: item.last, live: item.live, pending: item.pending, failed: item.failedId || item.bad };
  for (const [flag, on] of Object.entries(flags)) node.classList.toggle(flag, Boolean(on));
  if (item.live) node.setAttribute('aria-busy', 'true'); // announced once, when it is whole
  const sender = make('div', item.own ? 'sender hidden' : 'sender', item.own ? t('role.you') : item.name);
  if (!item.first) sender.classList.add('hidden');
  const bubble = make('div', 'bubble');
  bubble.dir = 'auto'; // a message is in whatever language it is in
  fillText(bubble, item);
  node.append(sender, bubble);
  if (actions.copy && !item.own && !item.live && !item.timeless) node.append(copyButton(item, actions.copy));
  node.append(footer(item, actions));
  return node;
}

function typingNode(item) {
  const dots = make('div', 'bubble dots', make('i'), make('i'), make('i'));
  dots.setAttribute('aria-hidden', 'true');
  return make('article', 'message from-bot first last typing', dots, make('span', 'hidden', item.text));
}

function itemNode(item, actions) {
  if (item.kind === 'message') return messageNode(item, actions);
  if (item.kind === 'typing') return typingNode(item);
  return make('div', item.kind, make('span', '', item.text));
}

/**
 * The elements of one list. `scroller` is the element that scrolls; `retry(id)` sends a refused
 * message again; `copy(text, button)`, if given, puts a message on the clipboard; `edit(id)`, if
 * given, is offered instead of `retry` where the same words can only be refused again.
 */
export class Messages {
  #nodes = new Map(); // key -> {node, seal}

  constructor(scroller, retry, copy = null, edit = null) {
    this.scroller = scroller;
    this.actions = { retry, copy, edit };
    this.settled = false; // no entrance animation for what was there on load
    this.following = true; // the reader stands at the end and stays there
    scroller.addEventListener('scroll', () => (this.following = this.atEnd()), { passive: true });
    // also when the field below grows, or a phone's keyboard comes up
    new ResizeObserver(() => this.following && this.toEnd()).observe(scroller);
  }

  /** True when the reader stands at the end, give or take a line. */
  atEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < 60;
  }

  toEnd() {
    this.following = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  clear() {
    this.#nodes.clear();
    this.scroller.replaceChildren();
    this.settled = false;
  }

  /** Show `items`. Keeps the reader at the end if they were there. */
  show(items) {
    const keys = new Set(items.map((item) => item.key));
    for (const [key, { node }] of this.#nodes) {
      if (keys.has(key)) continue;
      node.remove();
      this.#nodes.delete(key);
    }
    let at = this.scroller.firstChild;
    for (const item of items) {
      const before = this.#nodes.get(item.key)?.node;
      const node = this.#node(item);
      if (at && at === before) at = node; // rebuilt in its place
      if (node === at) at = at.nextSibling;
      else this.scroller.insertBefore(node, at);
    }
    this.settled = items.length > 0;
    if (this.following) this.toEnd();
  }

  #node(item) {
    const known = this.#nodes.get(item.key);
    const { text, ...frame } = item;
    const seal = JSON.stringify(item.kind === 'message' ? frame : item);
    if (known && known.seal === seal) {
      if (known.text !== text) {
        fillText(known.node.querySelector('.bubble'), item);
        known.text = text;
      }
      return known.node;
    }
    const node = itemNode(item, this.actions);
    if (!known && this.settled) node.classList.add('enter');
    known?.node.replaceWith(node);
    this.#nodes.set(item.key, { node, seal, text });
    return node;
  }
}
