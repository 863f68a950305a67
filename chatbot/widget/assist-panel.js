/** The page of the call panel: what assist-session.js says, and what the agent does with it, by key. */
import { startChatwoot } from './assist-chatwoot.js';
import { CallSession } from './assist-session.js';
import { Assist } from './desk-assist.js';
import { $, make, refill, setText } from './desk-dom.js';
import { Keys } from './desk-keys.js';
import { Host } from './host.js';
import { applyLooks } from './looks.js';

const query = new URLSearchParams(window.location.search);
const chatwoot = query.get('chatwoot');
const host = new Host(query.get('origin') ?? chatwoot ?? '', {
  init: (looks) => applyLooks(looks),
  open: ({ session: id, token }) => session.open(String(id ?? ''), String(token ?? '')),
  token: ({ token }) => session.setToken(String(token ?? '')),
  close: () => session.open('', ''),
  focus: () => $('log').focus(),
});

const LINK = { connecting: 'Connecting…', waiting: 'Connection lost, trying again…', ended: 'Not connected' };
const HINT = { look_up: 'Look up', ask: 'Ask', then: 'Then say' };
const FIELD_KEYS = [
  { keys: ['Enter'], does: 'use the edited draft' },
  { keys: ['Ctrl+Enter'], does: 'new line' },
  { keys: ['Esc'], does: 'leave the text field, close a dialog' },
];
let editing = null; // {suggestions_id, draft_id} of the draft in the field
let noticed;

function notice(text) {
  setText($('notice'), text);
  $('notice').hidden = !text;
  clearTimeout(noticed);
  if (text) noticed = setTimeout(() => notice(''), 8_000);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    notice('Copied.');
  } catch {
    notice('This browser does not let the panel copy: select the text.');
  }
}

const session = new CallSession({
  onChange: show,
  onError: notice,
  onToken() {
    notice('The panel needs a new token…');
    host.tell('token', { session: session.id });
  },
  onClosed: (reason) => host.tell('closed', { session: session.id, reason }),
  onUse(text, ref) {
    if (host.standalone || chatwoot) copy(text);
    else host.tell('insert', { text, session: session.id, ...ref });
  },
});

const assist = new Assist(session, { edit, tell: notice, leave: () => $('log').focus(), verb: 'Use' });

function edit(text, ref) {
  editing = ref;
  $('editor').hidden = false;
  $('text').value = text;
  $('text').focus();
}

function leave() {
  editing = null;
  $('editor').hidden = true;
  $('log').focus();
}

$('editor').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = $('text').value;
  if (!text.trim() || !editing) return;
  session.write('', text, editing);
  leave();
});
$('text').addEventListener('keydown', (event) => {
  if (event.isComposing) return;
  if (event.key === 'Enter' && !event.ctrlKey && !event.shiftKey) {
    event.preventDefault();
    $('editor').requestSubmit();
  } else if (event.key === 'Enter' && event.ctrlKey) $('text').setRangeText('\n', $('text').selectionStart, $('text').selectionEnd, 'end');
  else if (event.key === 'Escape') leave();
});

const help = () => $('help').showModal();
$('help-open').addEventListener('click', help);
$('help').addEventListener('click', ({ target }) => target.closest('[data-dismiss]') && $('help').close());
new Keys([
  { keys: ['a'], does: 'use the first draft', action: () => assist.act('send') },
  { keys: ['e'], does: 'edit the first draft', action: () => assist.act('edit') },
  { keys: ['d'], does: 'go to the drafts: Enter uses, e edits, Delete turns down', action: () => assist.enter() },
  { keys: ['t'], does: 'go to the transcript', action: () => $('log').focus() },
  { keys: ['?'], does: 'this help', action: help },
], () => Boolean(session.id), FIELD_KEYS);

// -- what is shown

const NAMES = { customer: 'Customer', agent: 'You', bot: 'Bot' };

function bubble(line) {
  const own = line.speaker !== 'customer';
  return make('div', `message first last${own ? ' own' : ''}`, make('div', 'sender', NAMES[line.speaker]), make('div', 'bubble', line.text));
}

function showTalk() {
  const finals = session.said(true);
  const scroller = $('log').parentElement;
  const atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
  // only what is new is written: a screen reader announces every write
  const shown = [...$('log').children];
  const same = shown.findIndex((node, at) => node.dataset.line !== finals[at]?.id);
  const keep = same < 0 ? shown.length : same;
  for (const node of shown.slice(keep)) node.remove();
  for (const line of finals.slice(keep)) {
    const node = bubble(line);
    node.dataset.line = line.id;
    $('log').append(node);
  }
  const partials = session.said(false);
  refill($('speaking'), partials, () => partials.map((line) => bubble({ ...line, text: `${line.text}…` })));
  if (atEnd) scroller.scrollTop = scroller.scrollHeight;
}

function showSummary() {
  const { problem = '', tried = [], open = [] } = session.summary ?? {};
  const rows = [['Problem', problem ? [problem] : []], ['Answered so far', tried], ['Open', open]].filter(([, lines]) => lines.length);
  refill($('summary'), rows, () => rows.flatMap(([name, lines]) => [make('dt', '', name), ...lines.map((line) => make('dd', '', line))]));
  $('summary').parentElement.hidden = !rows.length;
}

function showHints() {
  const hints = session.suggestions?.hints ?? [];
  $('next').hidden = !hints.length;
  refill($('hints'), hints, () => hints.map(({ kind, text, share, origin }) => make('li', '', make('strong', '', HINT[kind]), ` ${text}`, make('span', 'muted', `${Math.round(share * 100)} % of the closest moments, e.g. in ${origin}`))));
}

function show() {
  const held = session.agent && `${chatwoot ? 'Held by' : 'On the phone:'} ${session.agent}`;
  const state = { closed: `Over: ${session.reason}`, bot: 'The bot answers' }[session.status] ?? held;
  setText($('link'), LINK[session.link] ?? state ?? '');
  $('link').dataset.state = session.link;
  $('none').hidden = session.lines.size > 0;
  showTalk();
  showSummary();
  assist.show();
  showHints();
  if (editing && session.suggestions?.suggestions_id !== editing.suggestions_id) {
    leave();
    notice('The call has moved on: that draft is withdrawn.');
  }
}

show();
if (!host.genuine()) notice('This page is not where the panel was opened for.');
else if (chatwoot) startChatwoot({ session, origin: chatwoot, site: query.get('site') ?? '', notice });
else host.listen();
