-- What a script finds. Runs once in each interpreter, before any script; `h` is what the program gives (engine.rs).
--
-- Scripts share nothing: whatever they could change is behind tables that refuse it, and what they could reach it by is left out.
local h = ...

local error, format, getmetatable, ipairs, next, pairs, pcall, rawequal, rawget, rawset, select, setmetatable, tonumber, tostring, type, unpack, xpcall =
    error, string.format, getmetatable, ipairs, next, pairs, pcall, rawequal, rawget, rawset, select, setmetatable, tonumber, tostring, type, unpack, xpcall
local concat, insert, remove, sort, maxn = table.concat, table.insert, table.remove, table.sort, table.maxn
local byte, char, len, lower, rep, reverse, sub, upper =
    string.byte, string.char, string.len, string.lower, string.rep, string.reverse, string.sub, string.upper
local floor = math.floor
local charge, is_over, search = h.charge, h.is_over, h.search

local READONLY = 'Attempt to modify a readonly table'

-- The tables that scripts see, by what stands for them in their hands.
local behind = setmetatable({}, {__mode = 'k'})

local function guarded(contents, missing)
    local face = {}
    if missing then setmetatable(contents, {__index = missing}) end
    setmetatable(face, {
        __index = contents,
        __newindex = function() error(READONLY, 2) end,
        __metatable = false,
    })
    behind[face] = contents
    return face
end

local function fail(text) error({err = 'ERR ' .. text}, 0) end

-- What ends a script for good is caught by nothing; the error of a command is a table to scripts.
local function passed(ok, ...)
    if ok then return ok, ... end
    local err = ...
    if is_over(err) then error(err, 0) end
    if type(err) == 'userdata' then err = h.raised(err) end
    return false, err
end

local base = {}
base._VERSION = _VERSION
base.assert, base.error, base.ipairs, base.select, base.tonumber, base.tostring, base.type, base.unpack =
    assert, error, ipairs, select, tonumber, tostring, type, unpack
base.rawequal = rawequal
function base.next(t, k) return next(behind[t] or t, k) end
function base.pairs(t) return next, behind[t] or t, nil end
function base.rawget(t, k) return rawget(behind[t] or t, k) end
function base.rawset(t, k, v)
    if behind[t] then error(READONLY, 0) end
    return rawset(t, k, v)
end
function base.setmetatable(t, meta)
    if behind[t] then error(READONLY, 0) end
    return setmetatable(t, meta)
end
function base.getmetatable(t)
    if type(t) == 'string' then return nil end
    local meta = getmetatable(t)
    if meta == false then return nil end
    return meta
end
-- As in Redis: of an error that is a table, its text.
local function told_plainly(ok, ...)
    if ok then return ok, ... end
    local err = ...
    if type(err) == 'table' and type(rawget(err, 'err')) == 'string' then return false, err.err end
    return false, err
end
function base.pcall(...) return told_plainly(passed(pcall(...))) end
function base.xpcall(f, handler)
    return passed(xpcall(f, function(err)
        if type(err) == 'userdata' and not is_over(err) then err = h.raised(err) end
        return handler(err)
    end))
end
function base.collectgarbage(option)
    if option == nil or option == 'collect' or option == 'step' or option == 'stop' or option == 'restart' then return 0 end
    if option == 'count' then return h.kilobytes() end
    error("bad argument #1 to 'collectgarbage' (invalid option '" .. tostring(option) .. "')", 2)
end
function base.gcinfo() return floor(h.kilobytes()) end
local loadstring = loadstring
function base.loadstring(text, name)
    if type(text) ~= 'string' then
        error("bad argument #1 to 'loadstring' (string expected, got " .. (text == nil and 'no value' or type(text)) .. ')', 2)
    end
    charge(2 * #text)
    -- Compiled code is not checked by anything.
    if byte(text) == 27 then return nil, 'attempt to load compiled code' end
    return loadstring(text, name or text)
end
function base.load(piece, name)
    if type(piece) ~= 'function' then
        error("bad argument #1 to 'load' (function expected, got " .. (piece == nil and 'no value' or type(piece)) .. ')', 2)
    end
    local pieces = {}
    while true do
        local part = piece()
        if part == nil or part == '' then break end
        pieces[#pieces + 1] = part
    end
    return base.loadstring(concat(pieces), name or '=(load)')
end

-- Strings: what takes longer with longer ones is charged before it is done, and patterns are matched in bounded steps.
local function told(s, name, n)
    local kind = type(s)
    if kind == 'string' then return s end
    if kind == 'number' then return tostring(s) end
    error('bad argument #' .. n .. " to '" .. name .. "' (string expected, got " .. (s == nil and 'no value' or kind) .. ')', 3)
end
local function found(start, finish, ...)
    if start == false then error(finish, 3) end
    return start, finish, ...
end
local strings = string
function strings.lower(s) s = told(s, 'lower', 1) charge(#s / 64) return lower(s) end
function strings.upper(s) s = told(s, 'upper', 1) charge(#s / 64) return upper(s) end
function strings.reverse(s) s = told(s, 'reverse', 1) charge(#s / 64) return reverse(s) end
function strings.sub(s, i, j)
    s = told(s, 'sub', 1)
    charge(#s / 256)
    return sub(s, i, j)
end
function strings.rep(s, n)
    s = told(s, 'rep', 1)
    local count = tonumber(n)
    if not count then error("bad argument #2 to 'rep' (number expected, got " .. (n == nil and 'no value' or type(n)) .. ')', 2) end
    if count > 0 then
        h.fits(#s * count)
        charge(#s * count / 64 + count / 16)
    end
    return rep(s, count)
end
strings.format = function(...)
    charge(select('#', ...))
    return format(...)
end
strings.dump = nil
function strings.find(s, p, init, plain)
    s, p = told(s, 'find', 1), told(p, 'find', 2)
    return found(search(s, p, tonumber(init) or 1, plain and true or false))
end
function strings.match(s, p, init)
    s, p = told(s, 'match', 1), told(p, 'match', 2)
    local function whole(start, finish, first, ...)
        if start == nil then return nil end
        if first == nil then return sub(s, start, finish) end
        return first, ...
    end
    return whole(found(search(s, p, tonumber(init) or 1, false)))
end
function strings.gmatch(s, p)
    s, p = told(s, 'gmatch', 1), told(p, 'gmatch', 2)
    -- A caret has no meaning here.
    if byte(p) == 94 then p = '%' .. p end
    local at = 1
    return function()
        if at > #s + 1 then return nil end
        local function whole(start, finish, first, ...)
            if start == nil then at = #s + 2 return nil end
            at = finish + 1
            if finish < start then at = at + 1 end
            if first == nil then return sub(s, start, finish) end
            return first, ...
        end
        return whole(found(search(s, p, at, false)))
    end
end
strings.gfind = strings.gmatch
local function replacement(way, s, start, finish, first, ...)
    local kind = type(way)
    local whole = sub(s, start, finish)
    local with
    if kind == 'function' then
        if first == nil then with = way(whole) else with = way(first, ...) end
    elseif kind == 'table' then
        with = way[first == nil and whole or first]
    else
        local groups = {first, ...}
        with = {}
        local i = 1
        while i <= #way do
            local c = sub(way, i, i)
            if c == '%' then
                i = i + 1
                local d = byte(way, i)
                if d and d >= 48 and d <= 57 then
                    if d == 48 then with[#with + 1] = whole
                    elseif d == 49 and first == nil then with[#with + 1] = whole
                    else
                        local group = groups[d - 48]
                        if group == nil then error('invalid capture index', 4) end
                        with[#with + 1] = group
                    end
                else
                    with[#with + 1] = sub(way, i, i)
                end
            else
                with[#with + 1] = c
            end
            i = i + 1
        end
        return concat(with)
    end
    if not with then return whole end
    if type(with) ~= 'string' and type(with) ~= 'number' then
        error('invalid replacement value (a ' .. type(with) .. ')', 4)
    end
    return with
end
function strings.gsub(s, p, way, most)
    s, p = told(s, 'gsub', 1), told(p, 'gsub', 2)
    local kind = type(way)
    if kind == 'number' then way = tostring(way)
    elseif kind ~= 'string' and kind ~= 'function' and kind ~= 'table' then
        error("bad argument #3 to 'gsub' (string/function/table expected)", 2)
    end
    most = tonumber(most) or #s + 1
    local is_anchored = byte(p) == 94
    local parts, at, count = {}, 1, 0
    local function step(start, finish, ...)
        if start == nil then return false end
        count = count + 1
        parts[#parts + 1] = sub(s, at, start - 1)
        parts[#parts + 1] = replacement(way, s, start, finish, ...)
        at = finish + 1
        if finish < start then
            if at > #s then at = at + 1 return false end
            parts[#parts + 1] = sub(s, at, at)
            at = at + 1
        end
        return not is_anchored
    end
    while count < most and at <= #s + 1 and step(found(search(s, p, at, false))) do end
    parts[#parts + 1] = sub(s, at)
    charge(#s / 64)
    return concat(parts), count
end

local tables = table
function tables.concat(t, separator, i, j)
    charge(#t)
    return concat(t, separator, i, j)
end
function tables.insert(t, ...)
    if select('#', ...) > 1 and type(t) == 'table' then charge(#t / 4) end
    return insert(t, ...)
end
function tables.remove(t, at)
    if at ~= nil and type(t) == 'table' then charge(#t / 4) return remove(t, at) end
    return remove(t)
end
function tables.sort(t, before)
    if type(t) == 'table' then
        local n = #t
        local turns = 1
        while n > 1 do n = n / 2 turns = turns + 1 end
        charge(#t * turns)
    end
    return sort(t, before)
end
function tables.maxn(t)
    if type(t) == 'table' then charge(#t) end
    return maxn(t)
end

local maths = math
function maths.random(m, n)
    local r = h.random()
    if m == nil then return r end
    if n == nil then m, n = 1, m end
    if m > n then error("bad argument #" .. (n == m and 1 or 2) .. " to 'random' (interval is empty)", 2) end
    return floor(r * (n - m + 1)) + m
end
function maths.randomseed(seed) h.seed(seed) end

local redis = {
    LOG_DEBUG = 0, LOG_VERBOSE = 1, LOG_NOTICE = 2, LOG_WARNING = 3,
    REPL_NONE = 0, REPL_AOF = 1, REPL_SLAVE = 2, REPL_REPLICA = 2, REPL_ALL = 3,
    REDIS_VERSION = h.version, REDIS_VERSION_NUM = h.version_number,
}
local state = {}
function redis.acl_check_cmd(...)
    if select('#', ...) == 0 then fail('Please specify at least one argument for this redis lib call') end
    local may = state.may(...)
    if may == nil then fail('Invalid command passed to redis.acl_check_cmd()') end
    return may
end
function redis.error_reply(...)
    local text = ...
    if select('#', ...) ~= 1 or type(text) ~= 'string' then return {err = 'ERR wrong number or type of arguments'} end
    if byte(text) == 45 then text = sub(text, 2) end
    local first = search(text, ' ', 1, true)
    if not first then return {err = 'ERR ' .. text} end
    return {err = text}
end
function redis.status_reply(...)
    local text = ...
    if select('#', ...) ~= 1 or type(text) ~= 'string' then return {err = 'ERR wrong number or type of arguments'} end
    return {ok = text}
end
function redis.sha1hex(...)
    local text = ...
    if select('#', ...) ~= 1 then fail('wrong number of arguments') end
    text = (type(text) == 'string' and text) or (type(text) == 'number' and tostring(text)) or ''
    charge(#text / 8)
    return h.sha1hex(text)
end
function redis.log(...)
    if select('#', ...) < 2 then fail('redis.log() requires two arguments or more.') end
    local level = ...
    if type(level) ~= 'number' then fail('First argument must be a number (log level).') end
    if level < 0 or level > 3 then fail('Invalid log level.') end
end
function redis.setresp(...)
    if select('#', ...) ~= 1 then fail('redis.setresp() requires one argument.') end
    local version = ...
    if version ~= 2 and version ~= 3 then fail('RESP version must be 2 or 3.') end
    h.speak(version)
end
function redis.set_repl(...)
    if select('#', ...) ~= 1 then fail('redis.set_repl() requires two arguments.') end
    local flags = ...
    if type(flags) ~= 'number' or flags < 0 or flags > 3 then
        fail('Invalid replication flags. Use REPL_AOF, REPL_REPLICA, REPL_ALL or REPL_NONE.')
    end
end
function redis.replicate_commands() return true end
function redis.breakpoint() return false end
function redis.debug() end

local routines = {}
for name, routine in pairs(coroutine) do routines[name] = routine end
local resume = coroutine.resume
function routines.resume(...) return passed(resume(...)) end

local bits = {}
for name, operation in pairs(h.bit) do
    bits[name] = function(...)
        for i = 1, select('#', ...) do
            local word = select(i, ...)
            if tonumber(word) == nil then
                error('bad argument #' .. i .. " to '" .. name .. "' (number expected, got " .. (word == nil and 'nil' or type(word)) .. ')', 2)
            end
        end
        if select('#', ...) == 0 then error("bad argument #1 to '" .. name .. "' (number expected, got no value)", 2) end
        return operation(...)
    end
end

local json = {_NAME = 'cjson', _VERSION = '2.1.0', null = h.null}
function json.encode(...)
    if select('#', ...) ~= 1 then error("bad argument #1 to 'encode' (expected 1 argument)", 2) end
    local text, why = h.encode((...))
    if text == nil then error(why, 2) end
    return text
end
function json.decode(...)
    local text = ...
    if select('#', ...) ~= 1 then error("bad argument #1 to 'decode' (expected 1 argument)", 2) end
    text = told(text, 'decode', 1)
    local value, why = h.decode(text)
    if why ~= nil then error(why, 2) end
    return value
end

base.string, base.table, base.math = guarded(strings), guarded(tables), guarded(maths)
base.redis, base.coroutine, base.bit, base.cjson = guarded(redis), guarded(routines), guarded(bits), guarded(json)
getmetatable('').__metatable = false

-- The globals are an empty table in front of these.
local globals = _G
for name in pairs(globals) do globals[name] = nil end
base._G = globals
setmetatable(base, {__index = function(_, name)
    error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
end})
setmetatable(globals, {
    __index = base,
    __newindex = function() error(READONLY, 2) end,
    __metatable = false,
})
behind[globals] = base

local function explained(err)
    if is_over(err) then return err end
    local source, line = h.place()
    if type(err) == 'userdata' then err = h.raised(err) end
    local text
    if type(err) == 'table' then
        text = rawget(err, 'err')
        if type(text) ~= 'string' then text = 'ERR unknown error' end
    else
        text = 'ERR ' .. tostring(err)
    end
    return {err = text, source = source, line = line}
end

return function(script, keys, args, call, try, may)
    base.KEYS, base.ARGV = keys, args
    redis.call, redis.pcall, state.may = call, try, may
    local ok, result = xpcall(script, explained)
    base.KEYS, base.ARGV = nil, nil
    redis.call, redis.pcall, state.may = nil, nil, nil
    return ok, result
end
