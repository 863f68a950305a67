/** The column beside a conversation: its tags, and what is known of it. */
import { $, make, refill } from './desk-dom.js';
import { STATUS } from './desk-list.js';
import { summaryOf } from './desk-summary.js';

const MOST_TAGS = 20;

function versionsOf({ events, live }) {
  const counts = new Map();
  for (const { version } of [...events.filter(({ type }) => type.startsWith('reply.')), live ?? {}]) if (version) counts.set(version, (counts.get(version) ?? 0) + 1);
  return [...counts].map(([version, count]) => `${version} (${count} ${count === 1 ? 'reply' : 'replies'})`).join('\n');
}

function factsOf(line, transcript) {
  const { events } = transcript;
  const rating = events.findLast((event) => event.type === 'rating.given');
  const started = line.created_at || events[0]?.at;
  return [
    ['Visitor', line.visitor],
    ['Site', line.site],
    ['Status', STATUS[transcript.status]],
    ['Why', transcript.status === 'waiting' ? (line.reason ?? '') : ''],
    ['Held by', transcript.agent],
    ['Started', started ? new Date(started).toLocaleString() : ''],
    ['Messages', String(events.filter((event) => /^(message|reply)\./u.test(event.type)).length)],
    ['Answered by', versionsOf(transcript)],
    ['Rating', rating ? `${'★'.repeat(rating.score)} ${rating.comment ?? ''}` : ''],
    ['Conversation', line.conversation_id],
  ].filter(([, value]) => value);
}

function summaryNodes({ problem, tried, open, partial }) {
  const rows = [
    ['Problem', problem ? [problem] : []],
    ['Answered so far', tried],
    ['Open', open.length ? open : ['Nothing: the last message was answered']],
    ['What the bot had begun', partial ? [partial] : []],
  ].filter(([, lines]) => lines.length);
  return rows.flatMap(([name, lines]) => [make('dt', '', name), ...lines.map((line) => make('dd', '', line))]);
}

export class Facts {
  constructor(session) {
    this.session = session;
    $('tag-form').addEventListener('submit', (event) => this.#add(event));
  }

  show(line) {
    const { transcript } = this.session;
    $('facts-open').hidden = !transcript;
    $('facts-none').hidden = Boolean(transcript);
    if (!transcript) return;
    const facts = factsOf(line, transcript);
    refill($('facts'), facts, () => facts.flatMap(([name, value]) => [make('dt', '', name), make('dd', /^[vuc]-/u.test(value) ? 'id' : '', value)]));
    this.#showTags();
    const short = summaryOf(transcript);
    refill($('summary'), short, () => summaryNodes(short));
  }

  get #tags() {
    return this.session.transcript?.events.findLast(({ type }) => type === 'tags.changed')?.tags ?? [];
  }

  #showTags() {
    const tags = this.#tags;
    refill($('tags'), tags, () => tags.map((tag) => this.#chip(tag)));
    const others = [...new Set([...this.session.lines.values()].flatMap((line) => line.tags))].filter((tag) => !tags.includes(tag)).sort();
    refill($('known-tags'), others, () => others.map((tag) => Object.assign(make('option'), { value: tag })));
    $('tag').disabled = !this.session.connected || tags.length >= MOST_TAGS;
  }

  #chip(tag) {
    const remove = make('button', '', '×');
    remove.type = 'button';
    remove.setAttribute('aria-label', `Remove tag ${tag}`);
    remove.addEventListener('click', () => this.session.setTags(this.#tags.filter((other) => other !== tag)));
    return make('li', 'chip', make('span', '', tag), remove);
  }

  #add(event) {
    event.preventDefault();
    const tag = $('tag').value.trim();
    $('tag').value = '';
    if (tag) this.session.setTags([...this.#tags, tag]);
  }
}
