/**
 * The connection to Frontdesk, for the visitor's chat and for the agent's desk.
 *
 * Three parts that know nothing of each other: a Transcript assembles one conversation from
 * frames, an Outbox keeps what is not acknowledged yet, a Connection keeps a socket alive. None of
 * them touches the page. The wire is described in chatbot/protocol.py.
 */

/** Length of `text` in Unicode code points: what `from_char` counts (UTF-16 `length` is not). */
export function codePoints(text) {
  let count = 0;
  for (const point of text) count += point ? 1 : 0;
  return count;
}

/** `text` without its first `count` code points. */
export function dropCodePoints(text, count) {
  let index = 0;
  for (let left = count; left > 0 && index < text.length; left -= 1) {
    index += text.codePointAt(index) > 0xffff ? 2 : 1;
  }
  return text.slice(index);
}

/**
 * What one conversation's log says so far, plus the reply that is being written.
 *
 * `contiguous`: every offset must follow the one before. The desk sees the whole log; a visitor
 * does not see staff's notes, so for a visitor offsets may skip but never go back.
 */
export class Transcript {
  constructor({ contiguous = false } = {}) {
    this.contiguous = contiguous;
    this.reset();
  }

  reset() {
    this.epoch = undefined;
    this.offset = 0;
    this.status = 'bot';
    this.agent = '';
    this.events = [];
    this.live = null; // {replyId, version, text, length}
    this.ended = new Set(); // ids of replies that completed or failed
  }

  /** Where to continue from; empty before the first welcome. */
  cursor() {
    return this.epoch === undefined ? {} : { epoch: this.epoch, offset: this.offset };
  }

  /** Take a `welcome` or `conversation.watched`. */
  welcome(frame) {
    if (!frame.recovered) this.reset();
    this.epoch = frame.epoch;
    for (const event of frame.events) if (event.offset > this.offset) this.#record(event);
    this.offset = Math.max(this.offset, frame.offset);
    this.status = frame.status;
    if (frame.agent !== undefined) this.agent = frame.agent;
    const live = frame.live_reply;
    this.live = live ? this.#reply(live.reply_id, live.version, live.text) : null;
  }

  /**
   * Take one frame. Returns what became of it: `applied`, `duplicate` (nothing new in it), `gap`
   * (something before it is missing: reconnect from the cursor) or `ignored` (not of the log).
   */
  apply(frame) {
    if (frame.type === 'reply.started') return this.#started(frame);
    if (frame.type === 'reply.delta') return this.#delta(frame);
    if (frame.offset === undefined || frame.type === 'message.accepted') return 'ignored';
    if (frame.offset <= this.offset) return 'duplicate';
    if (this.contiguous && frame.offset !== this.offset + 1) return 'gap';
    this.#record(frame);
    return 'applied';
  }

  #reply(replyId, version, text) {
    return { replyId, version, text, length: codePoints(text) };
  }

  #record(event) {
    this.events.push(event);
    this.offset = event.offset;
    if (event.type === 'status.changed') {
      this.status = event.status;
      this.agent = event.status === 'human' ? (event.actor ?? '') : '';
    }
    if (event.type !== 'reply.completed' && event.type !== 'reply.failed') return;
    this.ended.add(event.reply_id);
    if (this.live?.replyId === event.reply_id) this.live = null;
  }

  #started(frame) {
    if (this.ended.has(frame.reply_id)) return 'duplicate';
    // another worker continues a reply under its old id: what was streamed stays
    if (this.live?.replyId === frame.reply_id) return 'duplicate';
    this.live = this.#reply(frame.reply_id, frame.version, '');
    return 'applied';
  }

  #delta(frame) {
    if (this.ended.has(frame.reply_id)) return 'duplicate';
    if (this.live?.replyId !== frame.reply_id) return 'gap';
    const known = this.live.length - frame.from_char;
    if (known < 0) return 'gap';
    const news = dropCodePoints(frame.text, known);
    if (!news) return 'duplicate';
    this.live.text += news;
    this.live.length += codePoints(news);
    return 'applied';
  }
}

/**
 * Frames with a `client_message_id` that the log has not shown back yet. They are sent again
 * after every reconnect under the same id, which the server takes once.
 */
export class Outbox {
  /** `keep(entries)` is called after each change, e.g. to store them beyond a reload. */
  constructor(entries = [], keep = () => {}) {
    this.entries = entries;
    this.keep = keep;
  }

  add(frame) {
    const entry = { id: frame.client_message_id, at: Date.now(), frame, error: null };
    this.entries.push(entry);
    this.keep(this.entries);
    return entry;
  }

  get(id) {
    return this.entries.find((entry) => entry.id === id);
  }

  settle(id) {
    const left = this.entries.filter((entry) => entry.id !== id);
    if (left.length === this.entries.length) return;
    this.entries = left;
    this.keep(left);
  }

  /** Refused by the server. `retryAt`: Unix ms when another try makes sense, if it said so. */
  fail(id, code, message, retryAt = null) {
    const entry = this.get(id);
    if (!entry) return;
    entry.error = { code, message, retryAt };
    this.keep(this.entries);
  }

  /** Put a refused one back in line and return it. */
  retry(id) {
    const entry = this.get(id);
    if (!entry) return undefined;
    entry.error = null;
    this.keep(this.entries);
    return entry;
  }

  unacknowledged() {
    return this.entries.filter((entry) => entry.error === null);
  }

  clear() {
    this.entries = [];
    this.keep(this.entries);
  }
}

/** Close codes that clients act on; see chatbot/protocol.py CloseCode. */
export const CLOSE = Object.freeze({
  NORMAL: 1000,
  GOING_AWAY: 1001,
  TOO_BIG: 1009,
  PROTOCOL: 4400,
  NOT_AUTHENTICATED: 4401,
  NOT_ALLOWED: 4403,
  LOG_RESET: 4409,
  ERASED: 4410,
  SLOW_READER: 4413,
  RATE_LIMITED: 4429,
});
const FATAL = new Set([CLOSE.PROTOCOL, CLOSE.NOT_ALLOWED]);
const AT_ONCE = new Set([CLOSE.GOING_AWAY, CLOSE.LOG_RESET, CLOSE.SLOW_READER]);

/** Thrown by the `hello` option. `fatal` ends the connection, else it is tried again later. */
export class HelloError extends Error {
  constructor(code, message, { fatal = false, retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { code, fatal, retryAfter });
  }
}

/** All times in ms. */
export const TIMING = Object.freeze({
  base: 500, // first back-off; doubles with each attempt
  cap: 30_000, // longest back-off
  rateLimited: 10_000, // least wait after close code 4429
  quiet: 25_000, // send a ping when nothing was received this long
  answer: 8_000, // a pong must come within this
  probe: 4_000, // the same, when the browser says that something changed
  connect: 12_000, // from the first try to the welcome
  stable: 10_000, // a socket open this long resets the back-off
});

/**
 * One socket that is kept open.
 *
 * Options: `url`; `hello()`, which resolves to the first frame (called for each try, so that it
 * has the newest token and cursor) or throws HelloError; `onFrame(frame)`; `onState(state,
 * detail)` with `connecting`, `open` (after the welcome), `waiting` {code, retryAt} or `ended`
 * {code, reason}; `onClose(code)`, called before anything is decided; `timing`; `random`.
 */
export class Connection {
  #socket = null;
  #run = 0; // each try has a number: what an older try still brings is ignored
  #attempts = 0;
  #openedAt = 0;
  #heardAt = 0;
  #timers = {};
  #listeners = [];

  constructor(options) {
    this.options = { onClose: () => {}, random: Math.random, ...options };
    this.timing = { ...TIMING, ...options.timing };
    this.state = 'idle';
  }

  start() {
    if (this.state !== 'idle' && this.state !== 'ended') return;
    this.#listen();
    this.#attempts = 0;
    this.#connect();
  }

  /** Close for good; `start` begins anew. */
  stop() {
    this.#forget(CLOSE.NORMAL);
    this.#unlisten();
    this.#set('idle');
  }

  /** Leave this socket and connect now, e.g. with a new token or after a gap. */
  restart() {
    if (this.state === 'idle') return;
    this.#forget();
    if (this.state === 'ended') this.#listen();
    if (Date.now() - this.#openedAt > this.timing.base) this.#connect();
    else this.#later(this.#backoff(), 0); // a restart that repeats itself must not spin
  }

  /** Send one frame; false when there is no open socket (nothing is kept here). */
  send(frame) {
    if (this.state !== 'open') return false;
    this.#socket.send(JSON.stringify(frame));
    return true;
  }

  /**
   * Send a frame that must be answered. A ping follows: the server answers in order, so when its
   * pong is missing, the socket is half open and whatever went before may be lost too.
   */
  sendDue(frame) {
    return this.send(frame) && this.#ping(this.timing.answer);
  }

  /** Is anybody there? Connects at once if not connected; else pings with a short deadline. */
  check() {
    if (this.state === 'waiting') this.#connect();
    else if (this.state === 'open') this.#ping(this.timing.probe);
  }

  #set(state, detail = {}) {
    this.state = state;
    this.options.onState(state, detail);
  }

  async #connect() {
    const run = this.#forget();
    this.#set('connecting');
    let hello;
    try {
      hello = await this.options.hello();
    } catch (error) {
      if (run !== this.#run) return;
      if (error.fatal) this.#end(error.code, error.message);
      else this.#later(Math.max(this.#backoff(), (error.retryAfter ?? 0) * 1000), 0);
      return;
    }
    if (run !== this.#run) return;
    const socket = new WebSocket(this.options.url);
    this.#socket = socket;
    socket.onopen = () => socket.send(JSON.stringify(hello));
    socket.onmessage = ({ data }) => run === this.#run && this.#receive(JSON.parse(data));
    socket.onclose = ({ code, reason }) => run === this.#run && this.#closed(code, reason);
    this.#timer('connect', this.timing.connect, () => this.#lost());
  }

  #receive(frame) {
    this.#heardAt = Date.now();
    if (frame.type === 'pong') return this.#cancel('answer');
    if (frame.type === 'welcome') {
      this.#cancel('connect');
      this.#openedAt = Date.now();
      this.#watchQuiet();
      this.state = 'open'; // so that whoever handles the welcome may send
      this.options.onFrame(frame);
      if (this.state === 'open') this.#set('open');
      return undefined;
    }
    this.options.onFrame(frame);
    return undefined;
  }

  #watchQuiet() {
    const left = this.#heardAt + this.timing.quiet - Date.now();
    this.#timer('quiet', Math.max(left, 50), () => {
      if (Date.now() - this.#heardAt >= this.timing.quiet) this.#ping(this.timing.answer);
      this.#watchQuiet();
    });
  }

  /** The deadline is lifted by the pong alone: other frames prove only that we can receive. */
  #ping(within) {
    this.send({ type: 'ping' });
    const due = Date.now() + within;
    if (this.#timers.answer && this.#timers.answer.due <= due) return true;
    this.#timer('answer', within, () => this.#lost());
    return true;
  }

  /** No answer in time: the socket is given up without waiting for its close handshake. */
  #lost() {
    this.#closed(1006, 'no answer');
  }

  #closed(code, reason) {
    const wasOpen = this.state === 'open';
    if (wasOpen) {
      // the server is there; only one that closes again and again is given more time
      const stable = Date.now() - this.#openedAt > this.timing.stable;
      this.#attempts = stable ? 0 : Math.min(this.#attempts, 2);
    }
    this.#forget();
    this.options.onClose(code);
    if (this.state === 'idle') return undefined; // stopped there
    if (FATAL.has(code)) return this.#end(code, reason);
    let wait = this.#backoff();
    if (AT_ONCE.has(code) && this.#attempts <= 1) wait = this.options.random() * 250;
    if (code === CLOSE.RATE_LIMITED) wait += this.timing.rateLimited;
    return this.#later(wait, code);
  }

  /** Exponential back-off with full jitter (AWS Architecture Blog, 2015). Counts the attempt. */
  #backoff() {
    const { base, cap } = this.timing;
    const most = Math.min(cap, base * 2 ** this.#attempts);
    this.#attempts += 1;
    return this.options.random() * most;
  }

  #later(wait, code) {
    this.#timer('retry', wait, () => this.#connect());
    this.#set('waiting', { code, retryAt: Date.now() + wait });
  }

  #end(code, reason) {
    this.#forget();
    this.#unlisten();
    this.#set('ended', { code, reason });
  }

  /** Drop the socket and every timer. Returns the number of the run that begins now. */
  #forget(code) {
    for (const name of Object.keys(this.#timers)) this.#cancel(name);
    const socket = this.#socket;
    this.#socket = null;
    this.#run += 1;
    if (socket) socket.close(code);
    return this.#run;
  }

  #timer(name, wait, action) {
    this.#cancel(name);
    const id = setTimeout(() => {
      delete this.#timers[name];
      action();
    }, wait);
    this.#timers[name] = { id, due: Date.now() + wait };
  }

  #cancel(name) {
    if (this.#timers[name]) clearTimeout(this.#timers[name].id);
    delete this.#timers[name];
  }

  #listen() {
    this.#unlisten();
    const check = () => this.check();
    const visible = () => document.visibilityState === 'visible' && this.check();
    this.#listeners = [
      [window, 'online', check],
      [window, 'offline', check],
      [window, 'pageshow', visible],
      [document, 'visibilitychange', visible],
    ];
    for (const [target, name, action] of this.#listeners) target.addEventListener(name, action);
  }

  #unlisten() {
    for (const [target, name, action] of this.#listeners) target.removeEventListener(name, action);
    this.#listeners = [];
  }
}

/** A new id for a message, unique without coordination. */
export function messageId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `m-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}

/** The websocket address of `path` on the server that this module came from. */
export function socketUrl(path) {
  const url = new URL(`../${path}`, import.meta.url);
  url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
  return url.href;
}

/** The HTTP address of `path` on the server that this module came from. */
export function httpUrl(path) {
  return new URL(`../${path}`, import.meta.url).href;
}
