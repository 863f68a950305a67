-- Prepended to every script of one conversation. All keys are of one lane (../keys.py).
--
-- JSON is never decoded here and only strings are encoded: Lua knows one kind of number (a double)
-- and one kind of table, so a number or an empty list would not survive cjson. Parts that callers
-- send as JSON are put together as text.
local HEAD, LOG, LIVE, IDS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local JOBS, OPEN, DIRTY, NOTIFY = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local GONE, TALK, DRAFTS = KEYS[9], KEYS[10], KEYS[11]
local PUBLISH = ARGV[1] -- PUBLISH, or SPUBLISH on a cluster
local GROUP, CONSUMER = 'workers', 'worker'
-- Seconds until keys go that hold nothing unrecorded (docs/decisions/0004-conversation-log.md)
local EMPTY_TTL, PLAYGROUND_TTL, GONE_TTL = 7 * 86400, 86400, 30 * 86400

local h = {} -- the head: field -> string
local changed = {} -- fields to be written by save()
local appended = false

local function int(number)
  return string.format('%.0f', number)
end

local function set(field, value)
  h[field] = value
  changed[field] = value
end

local function num(field)
  return tonumber(h[field]) or 0
end

local function quote(text)
  return cjson.encode(text)
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Identity of this run of the store: another one may have lost the end of its log on disk.
local function run_id()
  local info = redis.pcall('INFO', 'server')
  if type(info) ~= 'string' then
    return 'unknown'
  end
  return string.match(info, 'run_id:(%w+)') or 'unknown'
end

-- Epochs are `<number>-<random>`: later ones sort after earlier ones (../archive.py).
local function epoch_number(epoch)
  return tonumber(string.match(epoch or '', '^(%d+)-')) or 0
end

local function next_epoch(number, random)
  return string.format('%06d-%s', number + 1, random)
end

-- Load the head. Returns nil, or what the caller must see to first: 'missing', or 'check' when
-- the store was restarted since the log was last compared with the record.
local function open_head(compare)
  local flat = redis.call('HGETALL', HEAD)
  if #flat == 0 then
    return 'missing'
  end
  for i = 1, #flat, 2 do
    h[flat[i]] = flat[i + 1]
  end
  if compare and h.run ~= run_id() then
    return 'check'
  end
  return nil
end

local function head_flat()
  return redis.call('HGETALL', HEAD)
end

-- When a conversation of this id was erased, 0 for never: what began then or before is gone.
local function gone_at()
  return tonumber(redis.call('GET', GONE) or 0)
end

local function append_event(kind, data)
  local at = math.max(now_ms(), num('updated'))
  local offset = num('offset') + 1
  local event = '{"type":"' .. kind .. '","at":' .. int(at) .. ',"data":' .. data .. '}'
  redis.call('XADD', LOG, int(offset) .. '-0', 'e', event)
  set('offset', int(offset))
  set('updated', int(at))
  appended = true
  return offset
end

local function expire_all(seconds)
  redis.call('EXPIRE', HEAD, seconds)
  redis.call('EXPIRE', LOG, seconds)
  redis.call('EXPIRE', IDS, seconds)
end

local function persist_all()
  redis.call('PERSIST', HEAD)
  redis.call('PERSIST', LOG)
  redis.call('PERSIST', IDS)
end

local function write_head()
  local flat = {}
  for field, value in pairs(changed) do
    flat[#flat + 1] = field
    flat[#flat + 1] = value
  end
  if #flat > 0 then
    redis.call('HSET', HEAD, unpack(flat))
  end
  changed = {}
end

local function list_as_open()
  if h.status == 'closed' then
    redis.call('ZREM', OPEN, h.id)
  else
    redis.call('ZADD', OPEN, h.updated, h.id)
  end
end

local function notify()
  redis.call(PUBLISH, NOTIFY, h.id)
end

-- Write what changed, keep the lists of the lane true, and wake the readers.
local function save()
  if appended and h.kind == 'chat' then
    list_as_open()
    redis.call('ZADD', DIRTY, h.offset, h.id)
    if h.expires == '1' then
      persist_all()
      set('expires', '')
    end
  end
  write_head()
  if appended and h.kind == 'playground' then
    expire_all(PLAYGROUND_TTL)
  end
  notify()
end

-- ---- the reply that is being written

local function live_text()
  local parts = {}
  for _, entry in ipairs(redis.call('XRANGE', LIVE, '-', '+')) do
    parts[#parts + 1] = entry[2][4] -- fields: f, from_char, t, text
  end
  return table.concat(parts)
end

local function drop_job(job)
  if job and job ~= '' then
    redis.call('XACK', JOBS, GROUP, job)
    redis.call('XDEL', JOBS, job)
  end
end

local function add_job()
  set('job', redis.call('XADD', JOBS, '*', 'c', h.id, 'r', h.reply))
end

-- Enqueue a reply when the bot's turn has come: it owes an answer and writes none.
local function enqueue_if_due(reply_id)
  if h.status ~= 'bot' or h.reply ~= '' or num('asked') <= num('answered') then
    return
  end
  set('reply', reply_id)
  set('version', '')
  set('chars', '0')
  set('attempt', '0')
  set('upto', '0')
  set('queued', int(now_ms()))
  set('started', '')
  add_job()
end

local function requeue()
  drop_job(h.job)
  add_job()
  set('fence', int(num('fence') + 1))
  set('worker', '')
end

local function clear_reply()
  drop_job(h.job)
  redis.call('DEL', LIVE)
  set('reply', '')
  set('job', '')
  set('version', '')
  set('chars', '0')
  set('worker', '')
end

local function mark_answered(offset)
  if offset > num('answered') then
    set('answered', int(offset))
  end
end

local function holds(reply_id, fence)
  return h.reply == reply_id and reply_id ~= '' and h.fence == fence
end

local function renew_lease()
  redis.call('XCLAIM', JOBS, GROUP, CONSUMER, 0, h.job, 'FORCE', 'JUSTID')
end

-- `rest` is JSON text: usage, confidence and seconds.
local function append_completed(text, finish, rest)
  append_event('reply.completed', '{"reply_id":' .. quote(h.reply) .. ',"text":' .. quote(text)
    .. ',"finish_reason":"' .. finish .. '","version":' .. quote(h.version)
    .. ',"upto":' .. h.upto .. ',' .. rest .. '}')
end

-- End the reply from this side: `finish` is stopped or handoff. One that a hand-over meets before
-- it was announced leaves no event. One that a hand-over cut before its first word answered
-- nothing (rules.turn_after says the same).
local function end_reply(finish)
  if h.reply == '' then
    return
  end
  local text = live_text()
  if h.upto == '0' then
    set('upto', h.asked) -- stopped while it waited for a worker
  end
  if h.version ~= '' or finish == 'stopped' then
    local began = num('started') > 0 and num('started') or now_ms()
    append_completed(text, finish, '"usage":{},"confidence":null,"seconds":'
      .. string.format('%.3f', (now_ms() - began) / 1000))
  end
  if finish == 'stopped' or text ~= '' then
    mark_answered(num('upto'))
  end
  clear_reply()
end

local function change_status(status, reason, actor, agent)
  append_event('status.changed', '{"status":"' .. status .. '","previous":"' .. h.status
    .. '","reason":' .. quote(reason) .. ',"actor":' .. quote(actor)
    .. ',"agent":' .. quote(agent) .. '}')
  set('status', status)
  set('agent', agent)
  if status == 'closed' then
    redis.call('DEL', TALK)
  end
end

-- The reply failed: people take over. A playground has no people behind it.
local function fail_reply(reason)
  append_event('reply.failed', '{"reply_id":' .. quote(h.reply) .. ',"text":' .. quote(live_text())
    .. ',"version":' .. quote(h.version) .. ',"upto":' .. h.upto
    .. ',"reason":' .. quote(reason) .. '}')
  clear_reply()
  if h.kind == 'chat' then
    change_status('waiting', 'reply_failed', 'system', '')
  end
end
