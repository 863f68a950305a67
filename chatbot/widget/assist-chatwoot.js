/**
 * The panel as a dashboard app of Chatwoot. Chatwoot's page answers the message
 * `chatwoot-dashboard-app:fetch-info` with the conversation that is open, as JSON text
 * {event: 'appContext', data: {conversation, contact, currentAgent}}. Its messages go to the
 * assist API as what was said; nothing of Chatwoot is trusted but its words.
 */
import { httpUrl } from './client.js';
import { $ } from './desk-dom.js';
import { login } from './desk-session.js';
import { Store } from './store.js';

const EVERY_MS = 3_000;
const BATCH = 100;
const SPEAKERS = { 0: 'customer', 1: 'agent', incoming: 'customer', outgoing: 'agent' };

/** The messages that were said to the customer or by them, as fragments. */
export function fragmentsOf({ messages = [] }) {
  return messages
    .filter(({ message_type: type, private: note, content }) => SPEAKERS[type] && !note && String(content ?? '').trim())
    .map(({ id, message_type: type, content, created_at: at }) => ({
      id: `cw-${id}`, speaker: SPEAKERS[type], text: String(content), at: Math.round(Number(at) * 1000), final: true,
    }));
}

export function startChatwoot({ session, origin, site, notice }) {
  const store = new Store('assist', 'sessionStorage');
  const sent = new Set(); // fragment ids of the call that is open
  let known = ''; // Chatwoot's conversation
  let call = '';
  let busy = false;

  async function post(path, body) {
    const answer = await fetch(httpUrl(`v1/assist/${path}`), {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${store.get('token')}` },
      body: JSON.stringify(body),
      credentials: 'omit',
    });
    const value = await answer.json().catch(() => ({}));
    if (answer.status === 401) gate(true);
    if (!answer.ok) throw new Error(value.error?.message ?? 'That did not work.');
    return value;
  }

  function gate(shut) {
    $('gate').hidden = !shut;
    $('panel').hidden = shut;
    if (shut) store.remove('token');
  }

  async function follow({ conversation }) {
    const name = `chatwoot:${Number(conversation.account_id)}:${Number(conversation.id)}`;
    if (name !== known) {
      const at = { site, account: Number(conversation.account_id), conversation: Number(conversation.id) };
      const bots = await post('sessions/chatwoot', at).catch(() => null);
      const view = bots ?? await post('sessions', { site, call_id: name, agent: store.get('user') });
      known = name;
      call = bots ? '' : view.session_id; // what the bot has comes by Chatwoot's webhooks
      sent.clear();
      for (const { id } of view.transcript) sent.add(id);
      session.open(view.session_id, store.get('token'));
    }
    if (!call) return;
    const fresh = fragmentsOf(conversation).filter(({ id }) => !sent.has(id));
    for (let at = 0; at < fresh.length; at += BATCH) {
      const batch = fresh.slice(at, at + BATCH);
      await post(`sessions/${call}/fragments`, { fragments: batch });
      for (const { id } of batch) sent.add(id);
    }
  }

  window.addEventListener('message', async (event) => {
    if (event.source !== window.parent || event.origin !== origin || typeof event.data !== 'string') return;
    let context;
    try {
      context = JSON.parse(event.data);
    } catch {
      return; // Chatwoot's page says other things, too
    }
    if (context?.event !== 'appContext' || !context.data?.conversation?.id || busy || !store.get('token')) return;
    busy = true;
    try {
      await follow(context.data);
    } catch (error) {
      notice(error.message);
    } finally {
      busy = false;
    }
  });

  $('login').addEventListener('submit', async (event) => {
    event.preventDefault();
    try {
      const { token, user } = await login($('username').value, $('password').value);
      store.set('token', token);
      store.set('user', user.username);
      $('password').value = '';
      gate(false);
      ask();
    } catch (error) {
      $('login-error').textContent = error.message;
      $('login-error').hidden = false;
    }
  });

  function ask() {
    if (store.get('token')) window.parent.postMessage('chatwoot-dashboard-app:fetch-info', origin);
  }

  gate(!store.get('token'));
  ask();
  setInterval(ask, EVERY_MS);
}
