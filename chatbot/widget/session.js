/**
 * The visitor's side of one site: who they are, which conversation, what is sent and received.
 * Knows nothing of the page. Several tabs share it through the Store; each has its own socket.
 */
import { CLOSE, Connection, HelloError, Outbox, Transcript, codePoints, httpUrl, messageId, socketUrl } from './client.js';
import { Store } from './store.js';

const LONGEST_WAIT = 120; // seconds; after a longer one nothing is sent without the visitor
const READABLE = new Set(['reply.completed', 'message.created']);

/** A message of the other side, which counts as unread until it was seen. */
const fromThem = (event) => READABLE.has(event.type) && event.role !== 'visitor' && event.text;

export class Session {
  #identity = null; // a JWT of the site's own back end
  #token = null;
  #fresh = false; // the next hello begins a new conversation
  #due = []; // frames that wait for the socket (hand-over, rating)
  #stopping = '';
  #shown = 0; // events up to here were reported to onMessage
  #facts = null; // what the page says of the visitor
  #pageAsks = false; // the page wants consent first, whatever the site's settings say
  #current; // id of the conversation that the transcript holds

  /**
   * `onChange()` after anything changed; `onMessage(event)` once per new message of either side;
   * `onError(code, message, retryAfter, id)`, with the id of the message that it concerns;
   * `onConsent(state)`.
   */
  constructor(site, { onChange, onMessage, onError, onConsent }) {
    const store = new Store(site, 'localStorage', false);
    const tab = new Store(site, 'sessionStorage', false);
    Object.assign(this, { site, store, tab, onChange, onMessage, onError, onConsent });
    this.info = store.get('site') ?? null; // SiteInfo of chatbot/server/visitors.py
    this.consent = 'unknown'; // until the site has said; then needed, given, or free (none needed)
    this.people = null; // the last people.state, and when it came
    this.transcript = new Transcript();
    this.outbox = new Outbox(tab.get('outbox') ?? [], (entries) => tab.set('outbox', entries));
    for (const entry of this.outbox.entries) if (entry.error?.retryAt) entry.error = null;
    this.link = { state: 'idle' };
    this.connection = new Connection({
      url: socketUrl('v1/chat'),
      hello: () => this.#hello(),
      onFrame: (frame) => this.#receive(frame),
      onState: (state, detail) => {
        this.link = { state, ...detail };
        this.onChange();
      },
      onClose: (code) => this.#onClose(code),
    });
    store.watch((name, value) => this.#otherTab(name, value));
    this.#weighConsent(() => {}); // whoever makes a Session sees its state
  }

  get conversationId() {
    return this.store.get('conversation');
  }

  /** Is `text` longer than the server takes? Counted as it counts; no until the limit is known. */
  tooLong(text) {
    const most = this.info?.max_chars ?? 0;
    return most > 0 && text.length > most && codePoints(text) > most;
  }

  /** What is not acknowledged and meant for the eye. */
  get words() {
    return this.outbox.entries.filter((entry) => entry.frame.text);
  }

  get connected() {
    return this.link.state === 'open';
  }

  get stopping() {
    return this.transcript.live !== null && this.#stopping === this.transcript.live.replyId;
  }

  // -- consent: before it, nothing is stored and no conversation begins

  /** The page wants consent first. */
  requireConsent() {
    this.#pageAsks = true;
    this.#weighConsent();
  }

  agree() {
    this.store.set('consent', true);
    this.#weighConsent();
    this.resume();
    this.onChange();
  }

  /** Forget everything, and ask again before the next word. */
  withdraw() {
    this.#pageAsks = true;
    this.reset();
    this.store.forget();
    this.tab.forget();
    this.#weighConsent();
    this.onChange();
  }

  #weighConsent(tell = this.onConsent) {
    const before = this.consent;
    if (this.store.get('consent') === true) this.consent = 'given';
    else if (this.#pageAsks || this.info?.consent) this.consent = 'needed';
    else this.consent = this.info ? 'free' : 'unknown';
    if (this.mayKeep) {
      this.store.keep();
      this.tab.keep();
    }
    if (before !== this.consent) tell(this.consent);
  }

  get mayKeep() {
    return this.consent === 'given' || this.consent === 'free';
  }

  /** Connect if there is something to continue: a conversation, a known customer, unsent words. */
  resume() {
    if (this.conversationId || this.#identity || this.outbox.entries.length) this.connect();
  }

  /** Connect in any case; begins a conversation when there is none. */
  connect() {
    if (this.consent !== 'needed') this.connection.start();
  }

  /** Fetch the site's title and welcome without beginning a conversation. */
  async greet() {
    if (this.#token) return;
    try {
      await this.#authenticate();
    } catch (error) {
      if (error.fatal) this.onError(error.code, error.message, 0);
    }
    this.onChange();
  }

  send(text) {
    const frame = { type: 'message.send', client_message_id: messageId(), text };
    this.outbox.add(frame);
    this.connect();
    this.connection.sendDue(frame);
    this.onChange();
  }

  /** A message for people, with an address to answer to. */
  leaveContact({ name, email, text }) {
    const frame = { type: 'contact.leave', client_message_id: messageId(), name, email, text };
    this.outbox.add(frame);
    this.connect();
    this.connection.sendDue(frame);
    this.onChange();
  }

  /** What the page says of the visitor, for staff; sent once there is a conversation to put it in. */
  describe(facts) {
    this.#facts = facts;
    this.#tellFacts();
  }

  askPeople() {
    this.#whenOpen({ type: 'people.ask' });
  }

  end() {
    this.#whenOpen({ type: 'conversation.end' });
  }

  retry(id) {
    const entry = this.outbox.retry(id);
    if (!entry) return;
    this.connect();
    this.connection.sendDue(entry.frame);
    this.onChange();
  }

  /** Give a refused one back to be written again. */
  takeBack(id) {
    const text = this.outbox.get(id)?.frame.text ?? '';
    this.outbox.settle(id);
    this.onChange();
    return text;
  }

  stop() {
    const live = this.transcript.live;
    if (!live) return;
    this.#stopping = live.replyId;
    this.connection.sendDue({ type: 'reply.stop', reply_id: live.replyId });
    this.onChange();
  }

  typing() {
    this.connection.send({ type: 'typing' });
  }

  askForPerson() {
    this.#whenOpen({ type: 'handoff.request' });
  }

  rate(score, comment) {
    this.#whenOpen({ type: 'rating.give', score, comment });
  }

  startNew() {
    this.#forgetConversation();
    this.#fresh = true;
    this.#reconnect();
  }

  /** Log in as the customer that `jwt` names, or out with null: another visitor, another chat. */
  identify(jwt) {
    if (jwt === this.#identity) return;
    this.#identity = jwt;
    this.#token = null;
    if (jwt === null) this.reset();
    else this.#reconnect();
  }

  reset() {
    this.connection.stop();
    this.#identity = null;
    this.#token = null;
    this.#facts = null;
    this.store.remove('token', 'visitor');
    this.#forgetConversation();
    this.outbox.clear();
    this.onChange();
  }

  /** Messages of the other side that were not seen yet. */
  unread() {
    const { epoch, offset } = this.store.get('seen') ?? {};
    const from = epoch === this.transcript.epoch ? (offset ?? 0) : 0;
    return this.transcript.events.filter((event) => event.offset > from && fromThem(event)).length;
  }

  markSeen() {
    const { epoch, offset } = this.transcript;
    const seen = this.store.get('seen');
    if (epoch === undefined || (seen?.epoch === epoch && seen.offset >= offset)) return;
    this.store.set('seen', { epoch, offset });
  }

  #reconnect() {
    if (this.consent === 'needed') return;
    if (this.connection.state === 'idle' || this.connection.state === 'ended') this.connection.start();
    else this.connection.restart();
    this.onChange();
  }

  #whenOpen(frame) {
    this.#due.push(frame);
    this.connect();
    this.#sendDue();
  }

  #sendDue() {
    this.#due = this.#due.filter((frame) => !this.connection.sendDue(frame));
  }

  /** Words that are on their way stay in the outbox: they go into the next conversation. */
  #forgetConversation() {
    this.store.remove('conversation', 'seen', 'described');
    for (const { id, error } of [...this.outbox.entries]) if (error) this.outbox.settle(id);
    this.#due = [];
    this.#leaveConversation();
  }

  #leaveConversation() {
    this.transcript.reset();
    this.#current = undefined;
    this.#stopping = '';
    this.#shown = 0;
    this.people = null;
  }

  async #hello() {
    if (!this.#token) await this.#authenticate();
    if (this.consent === 'needed') throw new HelloError('consent', '', { fatal: true });
    const hello = { type: 'hello', token: this.#token, conversation_id: this.conversationId };
    if (this.#fresh) return { ...hello, conversation_id: undefined, new_conversation: true };
    return { ...hello, ...this.transcript.cursor() };
  }

  /** One tab at a time, so that two tabs of a new visitor become one visitor, not two. */
  async #authenticate() {
    const ask = () => this.#askForToken(this.store.get('token'));
    // without shared storage there is nothing to agree on, and Web Locks are refused as well;
    // they also exist in secure contexts only
    const alone = !this.store.shared || !navigator.locks;
    const body = await (alone ? ask() : navigator.locks.request(`frontdesk:${this.site}`, ask));
    if (this.store.get('visitor') !== body.visitor_id) {
      if (this.store.get('visitor') !== undefined) this.#forgetConversation();
      this.store.set('visitor', body.visitor_id);
    }
    this.#token = body.token;
    this.store.set('token', body.token);
    this.store.set('site', this.info);
    this.#weighConsent();
  }

  async #askForToken(known) {
    const response = await this.#post({
      site: this.site,
      visitor_token: known,
      identity: this.#identity ?? undefined,
    });
    if (response.ok) {
      const body = await response.json();
      this.store.set('token', body.token);
      this.info = body.site ?? this.info;
      this.#weighConsent(); // what may be kept is written before the lock is released
      return body;
    }
    const { error = {} } = await response.json().catch(() => ({}));
    if (response.status === 401 && (known || this.#identity)) {
      // expired, or signed with a key that is gone: go on as somebody new. Never as whoever the
      // older token names, who may be another customer at the same browser
      if (this.#identity) this.onError('identity_refused', error.message ?? '', 0);
      this.#identity = null;
      this.store.remove('token');
      return this.#askForToken(undefined);
    }
    const fatal = response.status < 500 && response.status !== 429;
    throw new HelloError(error.code ?? 'unavailable', error.message ?? 'The chat is not available.', {
      fatal,
      retryAfter: Number(response.headers.get('Retry-After') ?? error.retry_after ?? 0),
    });
  }

  async #post(body) {
    try {
      return await fetch(httpUrl('v1/visitors'), {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify(body),
        credentials: 'omit',
        signal: AbortSignal.timeout(10_000),
      });
    } catch {
      throw new HelloError('offline', 'The server cannot be reached.');
    }
  }

  #receive(frame) {
    if (frame.type === 'welcome') this.#welcome(frame);
    else if (frame.type === 'message.accepted') this.#accepted(frame.client_message_id);
    else if (frame.type === 'people.state') this.people = { ...frame, at: Date.now() };
    else if (frame.type === 'error') this.#error(frame);
    else if (this.transcript.apply(frame) === 'gap') {
      this.connection.restart();
      return;
    }
    this.#settle();
    this.#report();
    this.#tellFacts();
    this.onChange();
  }

  #welcome(frame) {
    this.#current = frame.conversation_id;
    this.transcript.welcome(frame);
    if (!frame.recovered) this.#shown = frame.offset; // history is no news
    this.#fresh = false;
    if (this.conversationId !== this.#current) this.store.set('conversation', this.#current);
    this.#settle();
    for (const entry of this.outbox.unacknowledged()) this.connection.sendDue(entry.frame);
    this.#sendDue();
    if (this.stopping) this.stop(); // the wish outlives the socket
  }

  /** What the log shows is no longer pending, here or as left over by another tab. */
  #settle() {
    for (const event of this.transcript.events) {
      if (event.client_message_id && this.outbox.get(event.client_message_id)) {
        this.outbox.settle(event.client_message_id);
      }
    }
  }

  /** Facts never come back in the log: their acknowledgement is all there is. */
  #accepted(id) {
    if (this.outbox.get(id)?.frame.type === 'visitor.describe') this.outbox.settle(id);
  }

  #tellFacts() {
    const begun = this.transcript.events.some((event) => event.role === 'visitor');
    if (!this.#facts || !begun || !this.connected) return;
    const seal = `${this.#current} ${JSON.stringify(this.#facts)}`;
    if (this.store.get('described') === seal) return;
    this.store.set('described', seal);
    const frame = { type: 'visitor.describe', client_message_id: messageId(), facts: this.#facts };
    this.outbox.add(frame);
    this.connection.sendDue(frame);
  }

  #report() {
    for (const event of this.transcript.events) {
      if (event.offset <= this.#shown) continue;
      this.#shown = event.offset;
      if (READABLE.has(event.type)) this.onMessage(event);
    }
  }

  #error({ code, message, retry_after: retryAfter = 0, client_message_id: id }) {
    if (code === 'too_long') this.#forgetLimit();
    if (id && this.outbox.get(id)) this.#refused(id, code, message, retryAfter);
    else if (code === 'not_found' && !this.connected && this.conversationId) {
      this.#forgetConversation(); // it was erased
      this.connection.restart();
      return;
    }
    this.onError(code, message, retryAfter, id);
  }

  /**
   * A message that may be sent again soon is, once it is time, unless the visitor was faster.
   * After a long wait the visitor decides.
   */
  #refused(id, code, message, retryAfter) {
    this.outbox.fail(id, code, message, retryAfter ? Date.now() + retryAfter * 1000 : null);
    if (!retryAfter || retryAfter > LONGEST_WAIT) return;
    const error = this.outbox.get(id)?.error;
    setTimeout(() => {
      if (error && this.outbox.get(id)?.error === error) this.retry(id);
    }, retryAfter * 1000);
  }

  /** The server's limit is another than the one that it gave: better none than a wrong one. */
  #forgetLimit() {
    this.info = { ...this.info, max_chars: 0 };
  }

  /** Nothing of what was said stays in this browser; the next words are a new visitor's. */
  #erased() {
    const identity = this.#identity; // the customer is still logged in at the page
    this.reset();
    this.#identity = identity;
  }

  #onClose(code) {
    if (code === CLOSE.NOT_AUTHENTICATED) this.#token = null;
    if (code === CLOSE.LOG_RESET) this.transcript.reset();
    if (code === CLOSE.ERASED) this.#erased();
    if (code !== CLOSE.TOO_BIG) return;
    this.#forgetLimit();
    const [first] = this.outbox.unacknowledged(); // sending it again would close again
    if (first) this.outbox.fail(first.id, 'too_big', '');
  }

  #otherTab(name, value) {
    if (name === 'conversation' && value !== undefined && value !== this.#current) {
      this.#leaveConversation();
      this.#token = this.store.get('token') ?? this.#token;
      this.#reconnect();
    } else if (name === 'visitor' && value === undefined) {
      this.reset(); // logged out over there
    } else if (name === 'consent') {
      this.#weighConsent();
      this.onChange();
    } else if (name === 'seen') {
      this.onChange();
    }
  }
}
