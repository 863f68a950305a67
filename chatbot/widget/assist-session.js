/**
 * One call as the panel follows it: a socket, what it said so far, and feedback on its way.
 * Knows nothing of the page.
 */
import { CLOSE, Connection, HelloError, messageId, socketUrl } from './client.js';

export class CallSession {
  #connection = null;
  #token = '';
  #waiting = new Map(); // request id -> what is told when it is refused

  /** `onChange()`; `onError(message)`; `onToken()`: a new token is needed; `onUse(text, ref)`; `onClosed(reason)`. */
  constructor(handlers) {
    Object.assign(this, handlers);
    this.forget();
  }

  forget() {
    this.id = '';
    this.lines = new Map();
    this.summary = null;
    this.suggestions = null;
    this.status = '';
    this.agent = '';
    this.reason = '';
    this.link = 'idle';
  }

  /** Follow another call, or none (''). */
  open(id, token) {
    this.#connection?.stop();
    this.forget();
    this.id = id;
    this.#token = token;
    if (!id) return this.onChange();
    this.#connection = new Connection({
      url: socketUrl(`v1/assist/sessions/${encodeURIComponent(id)}/stream`),
      hello: () => this.#hello(),
      onFrame: (frame) => this.#receive(frame),
      onState: (state) => {
        this.link = state;
        this.onChange();
      },
      onClose: (code) => this.#lost(code),
    });
    this.#connection.start();
    return undefined;
  }

  setToken(token) {
    this.#token = token;
    this.#connection?.restart();
  }

  get holding() {
    return this.status === 'open';
  }

  /** Does the customer wait for words? */
  get asking() {
    return this.holding && Boolean(this.summary?.open.length);
  }

  /** What was said, in the order of its time. */
  said(final) {
    return [...this.lines.values()].filter((line) => line.final === final).sort((a, b) => a.at - b.at);
  }

  feedback(what) {
    this.#send('suggestion.feedback', { suggestions_id: this.suggestions.suggestions_id, ...what });
  }

  /** The agent takes a draft, as it is or with other words. */
  write(_, text, ref) {
    this.#send('suggestion.feedback', { suggestions_id: ref.suggestions_id, accepted: { draft_id: ref.draft_id, text } });
    this.onUse(text, ref);
  }

  #hello() {
    if (!this.#token) throw new HelloError('no_token', 'no token', { retryAfter: 3600 });
    return { type: 'hello', token: this.#token };
  }

  #send(type, fields) {
    const id = messageId();
    if (this.#connection?.sendDue({ type, request_id: id, ...fields })) this.#waiting.set(id, type);
    else this.onError('Not connected: that was not noted.');
  }

  #lost(code) {
    this.#waiting.clear();
    if (code !== CLOSE.NOT_AUTHENTICATED) return;
    this.#token = '';
    this.onToken();
  }

  #receive(frame) {
    switch (frame.type) {
      case 'welcome':
        this.lines = new Map(frame.transcript.map((line) => [line.id, line]));
        this.summary = frame.summary;
        this.suggestions = frame.suggestions;
        this.#state(frame);
        break;
      case 'transcript':
        for (const id of frame.gone) this.lines.delete(id);
        for (const line of frame.lines) this.lines.set(line.id, line);
        break;
      case 'summary':
        this.summary = frame;
        break;
      case 'suggestions':
        this.suggestions = frame;
        break;
      case 'suggestions.withdrawn':
        if (this.suggestions?.suggestions_id === frame.suggestions_id) this.suggestions = null;
        break;
      case 'status':
        this.#state(frame);
        break;
      case 'error':
        if (this.#waiting.has(frame.request_id) || !frame.request_id) this.onError(frame.message);
        break;
      default:
    }
    if (frame.request_id) this.#waiting.delete(frame.request_id);
    this.onChange();
  }

  #state({ status, agent, reason }) {
    const over = status === 'closed' && this.status !== 'closed';
    Object.assign(this, { status, agent, reason });
    if (over) this.onClosed(reason);
  }
}
