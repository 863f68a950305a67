/** The list of conversations: which are shown, in which order, and their rows on the page. */
import { $, duration, face, make, refill, setText, shortName } from './desk-dom.js';
import { clock } from './view.js';

export const STATUS = { bot: 'Bot', waiting: 'Waiting', human: 'Person', closed: 'Closed' };
const RANK = { waiting: 0, human: 1, bot: 2, closed: 3 };
const LATE_MS = 60_000; // who waits longer is shown in red
const EMPTY = {
  all: 'No conversations now. New ones appear here by themselves.',
  waiting: 'Nobody waits for a person.',
  live: 'Neither the bot nor a colleague has a conversation now.',
  mine: 'You hold no conversation. Take one over with c.',
};

export class ConversationList {
  filter = 'all';
  #rows = new Map(); // conversation id -> its elements

  /** `open(id)` is called when a row is clicked. */
  constructor(session, open) {
    Object.assign(this, { session, open });
  }

  isMine = (line) => line.status === 'human' && line.agent === this.session.user?.username;

  /** Those who wait stand first, the longest wait on top; then own ones; then the latest activity. */
  #sorted() {
    const wait = (line) => (line.status === 'waiting' ? line.since : 0);
    return [...this.session.lines.values()].sort(
      (a, b) => RANK[a.status] - RANK[b.status] || this.isMine(b) - this.isMine(a) || wait(a) - wait(b) || b.updated_at - a.updated_at,
    );
  }

  #filters = {
    all: () => true,
    waiting: (line) => line.status === 'waiting',
    live: (line) => line.status === 'bot' || (line.status === 'human' && !this.isMine(line)),
    mine: this.isMine,
  };

  visible() {
    return this.#sorted().filter(this.#filters[this.filter]);
  }

  show() {
    this.#showFilters();
    const lines = this.visible();
    for (const line of lines) this.#showRow(line);
    this.#place(lines.map((line) => this.#rows.get(line.conversation_id).node));
    for (const id of this.#rows.keys()) if (!this.session.lines.has(id)) this.#rows.delete(id);
    $('list-empty').hidden = lines.length > 0;
    setText($('list-empty'), this.session.connected || lines.length ? EMPTY[this.filter] : 'Connecting…');
  }

  reveal(id) {
    this.#rows.get(id)?.node.scrollIntoView({ block: 'nearest' });
  }

  #place(nodes) {
    const list = $('list');
    if (nodes.length === list.children.length && nodes.every((node, at) => node === list.children[at])) return;
    const focused = document.activeElement;
    list.replaceChildren(...nodes);
    if (list.contains(focused)) focused.focus(); // moving an element takes its focus away
  }

  #showFilters() {
    const lines = [...this.session.lines.values()];
    for (const button of document.querySelectorAll('[data-filter]')) {
      const { filter: name } = button.dataset;
      const count = lines.filter(this.#filters[name]).length;
      setText(button.querySelector('span'), count ? String(count) : '');
      button.setAttribute('aria-pressed', String(name === this.filter));
    }
    const waiting = lines.filter(this.#filters.waiting).length;
    document.title = waiting ? `(${waiting}) Desk · Frontdesk` : 'Desk · Frontdesk';
  }

  #row(id) {
    const parts = {
      name: make('span', 'name'), time: make('span', 'time'), preview: make('span', 'preview'), reason: make('span', 'why'),
      badge: make('span', 'badge'), extras: make('span', 'extras'),
    };
    const button = make('button', 'row', make('span', 'top', parts.name, parts.time), parts.preview, parts.reason, make('span', 'bottom', parts.badge, parts.extras));
    button.type = 'button';
    button.addEventListener('click', () => this.open(id));
    this.#rows.set(id, { node: make('li', '', button), button, ...parts });
    return this.#rows.get(id);
  }

  #showRow(line) {
    const id = line.conversation_id;
    const { button, name, time, preview, reason, badge, extras } = this.#rows.get(id) ?? this.#row(id);
    const { text, since } = this.#time(line);
    setText(name, shortName(line.visitor));
    setText(time, text);
    time.classList.toggle('late', Boolean(since) && Date.now() - since > LATE_MS);
    setText(preview, this.session.visitorTypes(id) ? 'typing…' : line.preview || 'No message yet');
    setText(reason, line.status === 'waiting' ? line.reason : '');
    setText(badge, line.status === 'human' ? (this.isMine(line) ? 'You' : line.agent) : STATUS[line.status]);
    badge.dataset.status = line.status;
    const viewers = this.session.viewers(id);
    refill(extras, [line.tags, viewers.map(({ username }) => username), line.site], () => [
      ...line.tags.slice(0, 2).map((tag) => make('span', 'chip', tag)),
      ...viewers.slice(0, 3).map((agent) => face(agent, 'has it open')),
      make('span', 'site', line.site),
    ]);
    button.setAttribute('aria-current', String(id === this.session.selected));
  }

  /** What the corner of a row says, and since when somebody waits, if somebody does. */
  #time(line) {
    if (line.status === 'waiting') return { text: `waits ${duration(Date.now() - line.since)}`, since: line.since };
    if (line.status === 'human' && line.asked_at) return { text: `asked ${duration(Date.now() - line.asked_at)} ago`, since: line.asked_at };
    return { text: clock(line.updated_at), since: 0 };
  }
}
