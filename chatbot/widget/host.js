/**
 * The frame's end of the talk with widget.js on the page around it (postMessage, both ways).
 *
 * A message counts only if it comes from the parent window and from the origin that the frame was
 * opened for; ours are addressed to that origin alone. The server's `frame-ancestors` decides
 * which sites may embed the frame at all.
 */
export class Host {
  /** `handlers`: functions by message name: init, opened, closed, user, reset. */
  constructor(origin, handlers) {
    this.origin = origin;
    this.handlers = handlers;
    this.standalone = window.parent === window;
  }

  /** False when the page around is not the one that the address of this frame names. */
  genuine() {
    if (this.standalone) return true;
    const [actual] = window.location.ancestorOrigins ?? [this.origin];
    return URL.canParse(this.origin) && actual === this.origin;
  }

  listen() {
    window.addEventListener('message', (event) => {
      if (event.source !== window.parent || event.origin !== this.origin) return;
      const { frontdesk, name, data } = event.data ?? {};
      if (frontdesk === 1 && Object.hasOwn(this.handlers, name)) this.handlers[name](data ?? {});
    });
    this.tell('ready');
  }

  tell(name, data = {}) {
    if (!this.standalone) window.parent.postMessage({ frontdesk: 1, name, data }, this.origin);
  }
}
