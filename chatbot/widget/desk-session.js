/**
 * The agent's side: the live list of conversations and those that were opened, each with its own
 * cursor, over one socket. Knows nothing of the page.
 */
import {
  CLOSE, Connection, HelloError, Outbox, Transcript, httpUrl, messageId, socketUrl,
} from './client.js';
import { Store } from './store.js';

const KEPT = 20; // opened conversations that are remembered, to be shown again at once
const TYPING_MS = 4_000; // "is typing" fades after so long without news

/** Log in; resolves to {token, user}. Throws an Error whose message may be shown. */
export async function login(username, password) {
  let response;
  try {
    response = await fetch(httpUrl('v1/admin/login'), {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ username, password }),
      credentials: 'omit',
      signal: AbortSignal.timeout(15_000),
    });
  } catch {
    throw new Error('The server cannot be reached. Try again.');
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error?.message ?? 'The login did not work. Try again.');
  return body;
}

export class DeskSession {
  #store = new Store('desk', 'sessionStorage');
  #typing = new Map(); // conversation id -> when the visitor was seen typing

  /** `onChange()` after anything changed; `onError(message, conversationId)`; `onLogout(why)`. */
  constructor({ onChange, onError, onLogout }) {
    Object.assign(this, { onChange, onError, onLogout });
    this.lines = new Map();
    this.waitingSince = new Map();
    this.transcripts = new Map();
    this.selected = null;
    this.user = null;
    this.link = { state: 'idle' };
    this.outbox = new Outbox(this.#store.get('outbox') ?? [], (entries) => this.#store.set('outbox', entries));
    this.connection = new Connection({
      url: socketUrl('v1/desk'),
      hello: () => this.#hello(),
      onFrame: (frame) => this.#receive(frame),
      onState: (state, detail) => {
        this.link = { state, ...detail };
        if (state === 'ended') this.onLogout(detail.reason);
        this.onChange();
      },
      onClose: (code) => code === CLOSE.NOT_AUTHENTICATED && this.#store.remove('token'),
    });
  }

  get loggedIn() {
    return this.#store.get('token') !== undefined;
  }

  get connected() {
    return this.link.state === 'open';
  }

  start(token) {
    if (token) this.#store.set('token', token);
    this.connection.start();
  }

  logout() {
    this.connection.stop();
    this.#store.remove('token', 'outbox');
    this.outbox.clear();
    this.lines.clear();
    this.transcripts.clear();
    this.selected = null;
    this.onLogout('');
  }

  /** The opened conversation's line and transcript; undefined when none is open. */
  get line() {
    return this.lines.get(this.selected);
  }

  get transcript() {
    return this.transcripts.get(this.selected);
  }

  /** Messages and notes of one conversation that the log has not shown back yet. */
  pending(id) {
    return this.outbox.entries.filter((entry) => entry.frame.conversation_id === id);
  }

  visitorTypes(id) {
    return Date.now() - (this.#typing.get(id) ?? 0) < TYPING_MS;
  }

  /** Does this agent hold the conversation that is open? */
  get holding() {
    const { transcript, user } = this;
    return Boolean(user && transcript?.status === 'human' && transcript.agent === user.username);
  }

  select(id) {
    if (id === this.selected) return;
    if (this.selected) this.connection.send({ type: 'conversation.unwatch', conversation_id: this.selected });
    this.selected = id;
    for (const [known, { status }] of this.lines) {
      if (status === 'closed' && known !== id) this.lines.delete(known);
    }
    if (id) this.#watch();
    this.onChange();
  }

  claim() {
    this.#act('conversation.claim');
  }

  release() {
    this.#act('conversation.release');
  }

  close(reason) {
    this.#act('conversation.close', { reason });
  }

  /** `kind`: `message.send` or `note.add`. */
  write(kind, text) {
    const frame = { type: kind, conversation_id: this.selected, client_message_id: messageId(), text };
    this.outbox.add(frame);
    this.connection.sendDue(frame);
    this.onChange();
  }

  retry(id) {
    const entry = this.outbox.retry(id);
    if (entry) this.connection.sendDue(entry.frame);
    this.onChange();
  }

  /** Not kept for later when there is no connection: a claim that comes late is a surprise. */
  #act(type, more = {}) {
    const sent = this.connection.sendDue({ type, conversation_id: this.selected, ...more });
    if (!sent) this.onError('Not connected: nothing was changed. Try again in a moment.', this.selected);
  }

  async #hello() {
    const token = this.#store.get('token');
    if (!token) throw new HelloError('not_authenticated', 'Please log in again.', { fatal: true });
    return { type: 'hello', token };
  }

  #watch() {
    if (!this.transcript) this.transcripts.set(this.selected, new Transcript({ contiguous: true }));
    for (const id of [...this.transcripts.keys()].slice(0, -KEPT)) {
      if (id !== this.selected) this.transcripts.delete(id);
    }
    const cursor = this.transcript.cursor();
    this.connection.send({ type: 'conversation.watch', conversation_id: this.selected, ...cursor });
  }

  #receive(frame) {
    if (frame.type === 'welcome') this.#welcome(frame);
    else if (frame.type === 'conversation.listed') this.#list(frame);
    else if (frame.type === 'error') this.#error(frame);
    else if (frame.type === 'typing') this.#typed(frame.conversation_id);
    else this.#conversation(frame);
    this.onChange();
  }

  #welcome(frame) {
    this.user = { username: frame.username, role: frame.role };
    const open = this.line;
    this.lines.clear();
    for (const line of frame.conversations) this.#list(line);
    if (open && !this.line) this.lines.set(open.conversation_id, open); // closed meanwhile
    if (this.selected) this.#watch();
    for (const entry of this.outbox.unacknowledged()) this.connection.sendDue(entry.frame);
  }

  #list(line) {
    const id = line.conversation_id;
    if (line.status !== 'waiting') this.waitingSince.delete(id);
    else if (!this.waitingSince.has(id)) this.waitingSince.set(id, line.updated_at);
    if (line.status === 'closed' && id !== this.selected) this.lines.delete(id);
    else this.lines.set(id, line);
  }

  #typed(id) {
    this.#typing.set(id, Date.now());
    setTimeout(this.onChange, TYPING_MS + 50);
  }

  #conversation(frame) {
    const transcript = this.transcripts.get(frame.conversation_id);
    if (!transcript) return;
    if (frame.type === 'conversation.watched') transcript.welcome(frame);
    else if (transcript.apply(frame) === 'gap' && frame.conversation_id === this.selected) this.#watch();
    if (frame.type === 'message.created' && frame.role === 'visitor') this.#typing.delete(frame.conversation_id);
    for (const event of transcript.events) {
      if (event.client_message_id) this.outbox.settle(event.client_message_id);
    }
  }

  #error({ code, message, conversation_id: id, client_message_id: messageOf }) {
    if (messageOf) this.outbox.fail(messageOf, code, message);
    else this.onError(message, id ?? null);
    if ((code !== 'not_found' && code !== 'erased') || !id) return;
    this.lines.delete(id);
    this.transcripts.delete(id);
    if (id === this.selected) this.selected = null;
  }
}
