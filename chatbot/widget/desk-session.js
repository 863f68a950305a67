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

/** Call the admin API; resolves to its answer. Throws an Error whose message may be shown. */
async function call(method, path, token, body) {
  let response;
  try {
    response = await fetch(httpUrl(`v1/admin/${path}`), {
      method,
      headers: { 'Content-Type': 'application/json', ...(token && { Authorization: `Bearer ${token}` }) },
      body: body && JSON.stringify(body),
      credentials: 'omit',
      signal: AbortSignal.timeout(15_000),
    });
  } catch {
    throw new Error('The server cannot be reached. Try again.');
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error?.message ?? 'That did not work. Try again.');
  return answer;
}

/** Log in; resolves to {token, user}. */
export const login = (username, password) => call('POST', 'login', '', { username, password });

export class DeskSession {
  #store = new Store('desk', 'sessionStorage');
  #typing = new Map(); // conversation id -> when the visitor was seen typing

  /**
   * `onChange()` after anything changed; `onError(message, conversationId)`; `onLogout(why)`;
   * `onWithdrawn(suggestionsId)` when drafts must not be sent any more.
   */
  constructor({ onChange, onError, onLogout, onWithdrawn }) {
    Object.assign(this, { onChange, onError, onLogout, onWithdrawn });
    this.lines = new Map();
    this.drafts = new Map(); // conversation id -> the drafts for its open question
    this.agents = []; // who is at a desk: {username, role, conversations}
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
    this.agents = [];
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

  /** The drafts for the conversation that is open; undefined when there are none. */
  get suggestions() {
    return this.drafts.get(this.selected);
  }

  /** Does the visitor of the open conversation wait for words of this agent? */
  get asking() {
    const { transcript } = this;
    if (!transcript || !(this.holding || transcript.status === 'waiting')) return false;
    const last = transcript.events.findLast(({ type, text }) => text && /^(message\.created|reply\.completed)$/u.test(type));
    return last?.role === 'visitor';
  }

  select(id) {
    if (id === this.selected) return;
    if (this.selected) this.connection.send({ type: 'conversation.unwatch', conversation_id: this.selected });
    this.drafts.clear(); // they come again with the watch
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

  /** To a colleague; with an empty name back into the queue. */
  transfer(agent, reason) {
    this.#act('conversation.transfer', { agent, reason });
  }

  setTags(tags) {
    this.#act('tags.set', { tags });
  }

  /** The admin API as this agent. */
  api(method, path, body) {
    return call(method, path, this.#store.get('token'), body);
  }

  /** Colleagues who have a conversation open too. */
  viewers(id) {
    return this.agents.filter(({ username, conversations }) => username !== this.user?.username && conversations.includes(id));
  }

  close(reason) {
    this.#act('conversation.close', { reason });
  }

  /** `kind`: `message.send` or `note.add`. `suggestion`: the draft that the text began as. */
  write(kind, text, suggestion) {
    const frame = { type: kind, conversation_id: this.selected, client_message_id: messageId(), text, ...(suggestion && { suggestion }) };
    this.outbox.add(frame);
    this.connection.sendDue(frame);
    this.onChange();
  }

  /** What became of the drafts that are shown. Lost without a connection: it is no promise. */
  feedback(what) {
    const { suggestions_id } = this.suggestions;
    this.connection.send({ type: 'suggestion.feedback', conversation_id: this.selected, suggestions_id, ...what });
  }

  retry(id) {
    const entry = this.outbox.retry(id);
    if (entry) delete entry.frame.suggestion; // the agent has seen why it was refused: now it is their own text
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
    else if (frame.type === 'presence') this.agents = frame.agents;
    else if (frame.type === 'suggestions') this.drafts.set(frame.conversation_id, frame);
    else if (frame.type === 'suggestions.withdrawn') this.#withdraw(frame);
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
    if (line.status === 'closed' && id !== this.selected) this.lines.delete(id);
    else this.lines.set(id, line);
  }

  #withdraw({ conversation_id: id, suggestions_id }) {
    if (this.drafts.get(id)?.suggestions_id === suggestions_id) this.drafts.delete(id);
    this.onWithdrawn(suggestions_id);
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
