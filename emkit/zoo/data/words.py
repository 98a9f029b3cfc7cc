"""The words and colours that images and questions are made of."""


def listed(text: str) -> tuple[str, ...]:
    """The words of a text, in order."""
    return tuple(text.split())


COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (240, 140, 20),
    "yellow": (236, 210, 20),
    "green": (40, 150, 60),
    "blue": (40, 90, 215),
    "purple": (140, 50, 170),
    "black": (35, 35, 35),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
THINGS = ("cup", "bottle", "key", "shirt", "phone", "book", "bowl", "lamp")

SIGN_WORDS = listed(
    """
    OPEN STOP EXIT TAXI BANK CAFE FOOD SALE HOTEL PARK BUS ZOO GYM SPA BAR PUB WAY NORTH SOUTH EAST WEST LEFT
    RIGHT UP DOWN PUSH PULL SLOW WAIT WALK TURN KEEP MILK BREAD FISH TEA SOUP PIZZA FRUIT CAKE MEAT RICE SHOE
    TOY GIFT BIKE CAR BOAT TRAIN METRO PORT ROAD LAKE HILL FARM BEACH RIVER CITY TOWN HOME CLUB KING QUEEN MUSIC
    DANCE FILM NEWS MAIL POST LOST FREE COLD HOT NEW OLD BIG STAR MOON SUN SNOW
    """
)
TITLE_WORDS = listed(
    """
    MOON RIVER NIGHT GOLD STORM HOUSE STONE GHOST QUEEN KING OCEAN DREAM LIGHT WOLF ROSE WAR SNOW FIRE HEART
    CROWN SHIP CITY LOST LAST FIRST DARK WILD BLUE SECRET SILENT
    """
)
AUTHORS = listed(
    """
    ADAMS BAKER CLARK DAVIS EVANS FOX GRANT HILL IRWIN JONES KELLY LEE MOORE NASH OWEN PRICE QUINN REED SMITH
    TATE URBAN VANCE WOOD YOUNG
    """
)
GENRES: dict[str, tuple[int, int, int]] = {
    "cooking": (240, 140, 20),
    "history": (130, 85, 45),
    "science": (40, 90, 215),
    "travel": (40, 150, 60),
    "romance": (225, 80, 130),
    "crime": (45, 45, 50),
}
CHART_LABELS = ("A", "B", "C", "D", "E", "F", "G", "H", "K", "M")
COLUMNS = ("left", "middle", "right")
OPTION_LETTERS = ("A", "B", "C", "D")
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "cross": "crosses",
    "ring": "rings",
}
