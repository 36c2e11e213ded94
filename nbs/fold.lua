-- Writes the name of a cell's code on its fold, and the places that marks beside equations lead to into it: a link to one opens the fold.
-- Quarto's own `code-summary` parses each name as a document: a seventh of the time of all pages.
function Div(cell)
  local name = cell.attributes["code-name"]
  if not name then return nil end
  cell.attributes["code-name"] = nil
  local places = ""
  for id in (cell.attributes["code-id"] or ""):gmatch("%S+") do
    places = places .. '<span id="' .. id .. '"></span>'
  end
  cell.attributes["code-id"] = nil
  return cell:walk({
    RawInline = function(raw)
      local before = raw.text:match("^(.*)</summary>$")
      return before and { pandoc.RawInline("html", before), pandoc.Str(name), pandoc.RawInline("html", "</summary>" .. places) }
    end,
  })
end

-- A table in a frame that scrolls and that keys reach.
local tables = 0
function Table(t)
  tables = tables + 1
  local about = { role = "region", tabindex = "0", ["aria-label"] = "Table " .. tables }
  return pandoc.Div({ t }, pandoc.Attr("", { "scroll" }, about))
end
