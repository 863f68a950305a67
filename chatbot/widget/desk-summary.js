/**
 * A conversation in short: the problem, what was tried, what is open. Every line is a quotation:
 * nothing is put into words that nobody said.
 */
const WORDS = 4; // shorter first messages are greetings
const TRIED = 3;

const short = (text) => (text.length > 160 ? `${text.slice(0, 157).trimEnd()}…` : text);
const said = (text) => /\S/u.test(text ?? '');

/** {problem, tried: [..], open: [..], partial}; empty where there is nothing to say. */
export function summaryOf({ events, live }) {
  const asked = events.filter(({ type, role }) => type === 'message.created' && role === 'visitor');
  const replies = events.filter(({ type, role, text }) => said(text) && (type === 'reply.completed' || (type === 'message.created' && role === 'agent')));
  const problem = asked.find(({ text }) => text.trim().split(/\s+/u).length >= WORDS) ?? asked[0];
  const answeredTo = Math.max(0, ...replies.filter(({ late }) => !late).map(({ upto, offset }) => upto ?? offset));
  const cut = events.findLast(({ type, finish_reason: end }) => type === 'reply.failed' || (type === 'reply.completed' && end === 'handoff'));
  const still = asked.filter(({ offset, late }) => offset > answeredTo && !late);
  return {
    problem: problem ? short(problem.text) : '',
    tried: replies.filter(({ finish_reason: end }) => end !== 'handoff').slice(-TRIED).map(({ text }) => short(text)),
    open: still.map(({ text }) => short(text)),
    partial: live?.text || (said(cut?.text) ? cut.text : ''),
  };
}
