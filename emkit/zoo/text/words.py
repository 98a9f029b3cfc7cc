"""The words that problems, programs and instructions are made of."""

from emkit.zoo.data.words import listed

HER = listed("Anna Emma Lucy Mary Nora Rosa Sara Tina Vera Zoe Eva Ida Kate Lena Mia Olga")
HIS = listed("Adam Ben Carl Dan Fred Hans Jack Leo Max Noah Otto Paul Rob Sam Tom Will")
NAMES = HER + HIS

THINGS = listed("apples books cards coins cups eggs keys nuts pens pins plums rings shells stamps stones toys")

OPPOSITES = (
    *(("hot", "cold"), ("big", "small"), ("fast", "slow"), ("old", "new"), ("wet", "dry"), ("high", "low")),
    *(("hard", "soft"), ("long", "short"), ("light", "dark"), ("full", "empty"), ("rich", "poor"), ("open", "shut")),
    *(("early", "late"), ("good", "bad"), ("near", "far"), ("loud", "quiet"), ("up", "down"), ("left", "right")),
)
OPPOSITE_OF = {**dict(OPPOSITES), **{second: first for first, second in OPPOSITES}}

COLORS = {
    "red": listed("rose brick cherry tomato ruby"),
    "green": listed("grass leaf frog lime cactus"),
    "yellow": listed("lemon banana corn butter duckling"),
    "white": listed("snow milk salt chalk cotton"),
    "black": listed("coal tar raven ink soot"),
    "blue": listed("sky sea jeans sapphire whale"),
    "brown": listed("bark bear toast cocoa mud"),
}
COLOR_OF = {thing: color for color, things in COLORS.items() for thing in things}

# smallest first
ANIMALS = listed("ant bee mouse frog rat duck cat fox dog goat pig wolf lion cow horse elephant")

NOUNS = listed("cat dog sun hat box tree book fish bird lamp door boat moon ring star bell cake ship king road")
