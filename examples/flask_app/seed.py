"""The made-up clients of a new database: the same ones on every machine.

The names are common ones put together at random. Addresses end in .example, which nobody can
own, and phone numbers come from the ranges that regulators set aside for films and books.
"""

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

from db import fold
from forms import Client

EACH = 600  # of every region


class Region(NamedTuple):
    first_names: str
    last_names: str
    cities: dict[str, str]  # city: phone number, a digit for every #
    domains: list[str]  # of this region only, so that no address comes up twice


REGIONS = (
    Region(  # United States
        "Aaliyah Amelia Andre Ava Benjamin Brianna Caleb Camila Carter Chloe Daniel Darius Elena"
        " Elijah Emma Ethan Evelyn Gabriel Grace Hannah Isaac Isabella Jada James Jasmine Julian"
        " Kayla Liam Lucas Madison Mateo Maya Mia Naomi Noah Olivia Owen Priya Samuel"
        " Sofia",
        "Adams Alvarez Anderson Bailey Bennett Brooks Carter Castillo Chen Collins Cruz Davis"
        " Diaz Edwards Evans Fisher Foster Garcia Gomez Gray Harris Hayes Hernandez Howard"
        " Jackson Jenkins Johnson Kim Lee Lewis Lopez Martinez Miller Mitchell Moore Morales"
        " Murphy Nguyen Ortiz Parker Patel Perry Price Ramirez Reed Rivera Robinson Sanders"
        " Torres Washington",
        {
            "Albuquerque": "+1 505-555-01##",
            "Austin": "+1 512-555-01##",
            "Boston": "+1 617-555-01##",
            "Chicago": "+1 312-555-01##",
            "Denver": "+1 303-555-01##",
            "Portland": "+1 503-555-01##",
            "Seattle": "+1 206-555-01##",
            "Tucson": "+1 520-555-01##",
        },
        ["bluemesa.example", "lakeshore.example", "pinehill.example", "redbarn.example"],
    ),
    Region(  # United Kingdom
        "Adam Aisha Alfie Alice Amir Amy Angus Archie Bethan Callum Charlotte Daisy Dylan Edward"
        " Eilidh Eleanor Emily Fiona Florence Freya George Gareth Harriet Harry Imogen Isla Jack"
        " Jessica Leila Lewis Martha Megan Mohammed Niamh Oliver Oscar Poppy Rhys Ruby"
        " Zara",
        "Ahmed Allen Atkinson Bell Brown Campbell Clarke Cooper Davies Dixon Ellis Fletcher"
        " Fraser Green Griffiths Hall Harrison Hughes Hussain Jones Kaur Kelly Khan Lloyd"
        " MacDonald Marshall Mason Morgan Murray Owen Palmer Pearce Powell Reid Richards Roberts"
        " Robertson Shah Shaw Simpson Singh Smith Stewart Taylor Thomas Walker Watson Webb"
        " Williams Wright",
        {
            "Belfast": "+44 28 9649 6###",
            "Birmingham": "+44 121 496 0###",
            "Bristol": "+44 117 496 0###",
            "Cardiff": "+44 29 2018 0###",
            "Edinburgh": "+44 131 496 0###",
            "Glasgow": "+44 141 496 0###",
            "Leeds": "+44 113 496 0###",
            "London": "+44 20 7946 0###",
            "Manchester": "+44 161 496 0###",
            "Sheffield": "+44 114 496 0###",
        },
        ["fernley.example", "harbourside.example", "oakandson.example", "thistle.example"],
    ),
    Region(  # Germany
        "Anja Anton Ben Britta Clara Daniel Emil Emre Eva Felix Finn Florian Frieda Greta Hanna"
        " Henrik Ida Jakob Jana Jannis Johanna Jonas Jörg Jürgen Karl Katrin Lena Leon Lina"
        " Lukas Marie Mats Mila Moritz Nils Paul Selin Sören Theo Ursula",
        "Bauer Becker Böhm Brandt Braun Busch Demir Dietrich Engel Fischer Franke Fuchs Graf"
        " Günther Haas Hartmann Hoffmann Huber Jäger Kaiser Keller Klein Koch König Krämer Kraus"
        " Krüger Lang Lehmann Lorenz Maier Meyer Möller Müller Neumann Otto Pfeiffer Richter"
        " Roth Sauer Schäfer Schmidt Schröder Schulz Seidel Vogel Wagner Weber Winkler"
        " Yilmaz",
        {
            "Berlin": "+49 30 23125 ###",
            "Frankfurt am Main": "+49 69 90009 ###",
            "Hamburg": "+49 40 66969 ###",
            "Köln": "+49 221 4710 ###",
            "München": "+49 89 99998 ###",
        },
        ["elbufer.example", "lindenhof.example", "nordlicht.example", "werkstatt7.example"],
    ),
    Region(  # France
        "Adèle Agathe Alice Amina Antoine Arthur Baptiste Benoît Camille Céline Chloé Clément"
        " Élise Émile Étienne Eva Gabriel Hélène Hugo Inès Jade Jérôme Jules Karim Léa Léo"
        " Louise Lucie Maël Manon Margaux Mathis Nathan Noémie Raphaël Romane Rose Sacha Théo"
        " Zoé",
        "André Aubert Barbier Benali Bernard Bertrand Blanc Bonnet Boyer Brun Chevalier Clément"
        " David Dubois Dufour Dupont Durand Faure Fontaine Fournier Garnier Gauthier Girard"
        " Guérin Henry Lambert Laurent Lefèvre Legrand Leroy Mercier Meunier Michel Moreau Morel"
        " Morin Nicolas Perrin Petit Renard Richard Robin Rousseau Roussel Roux Simon Thomas"
        " Traoré Vidal Vincent",
        {
            "Bordeaux": "+33 5 36 49 ## ##",
            "Lyon": "+33 4 65 71 ## ##",
            "Marseille": "+33 4 65 71 ## ##",
            "Nantes": "+33 2 61 91 ## ##",
            "Paris": "+33 1 99 00 ## ##",
            "Rennes": "+33 2 61 91 ## ##",
            "Strasbourg": "+33 3 53 01 ## ##",
            "Toulouse": "+33 5 36 49 ## ##",
        },
        ["atelier-bleu.example", "belleville.example", "lecomptoir.example", "moulin.example"],
    ),
    Region(  # Australia
        "Abigail Aiden Amelia Anh Bella Billie Charlie Cooper Darcy Ella Eloise Georgia Gus"
        " Harvey Hudson Indiana Isabelle Jarrah Jasper Kirra Lachlan Layla Levi Lola Mackenzie"
        " Matilda Mei Nina Oscar Patrick Piper Quinn Rohan Sienna Stella Tahlia Thomas Tom"
        " Wei Xavier",
        "Armstrong Barker Burke Byrne Chan Cohen Costa Crawford Dawson Doyle Duncan Ferguson"
        " Fitzgerald Gibson Gill Gordon Grant Hamilton Hart Ho Holmes Hunt Johnston Kennedy Le"
        " Lin Lynch Mackay Mehta Nash O'Brien O'Connor Papadopoulos Pham Quinn Rossi Ryan"
        " Saunders Sharma Stone Sullivan Sutherland Tran Wallace Walsh Wang West Wong Young"
        " Zhang",
        {
            "Adelaide": "+61 8 7010 ####",
            "Brisbane": "+61 7 7010 ####",
            "Canberra": "+61 2 7010 ####",
            "Hobart": "+61 3 7010 ####",
            "Melbourne": "+61 3 7010 ####",
            "Perth": "+61 8 7010 ####",
            "Sydney": "+61 2 7010 ####",
        },
        ["bottlebrush.example", "coastline.example", "jacaranda.example", "southerly.example"],
    ),
)


def made_up_clients() -> Iterator[Client]:
    """The clients in a mixed order; every run gives the same."""
    dice = random.Random(512)
    chosen = []
    for region in REGIONS:
        names = list(itertools.product(region.first_names.split(), region.last_names.split()))
        chosen += [(region, first, last) for first, last in dice.sample(names, EACH)]
    dice.shuffle(chosen)
    for region, first, last in chosen:
        city, number = dice.choice(list(region.cities.items()))
        yield Client(
            name=f"{first} {last}",
            email=f"{_plain(first)}.{_plain(last)}@{dice.choice(region.domains)}",
            city=city,
            phone="".join(str(dice.randrange(10)) if char == "#" else char for char in number),
        )


def days_ago() -> Iterator[int]:
    """For each of them, how many days before today it was added: more of them lately."""
    count = EACH * len(REGIONS)
    return (round(700 * (1 - (number / count) ** 0.6)) for number in range(1, count + 1))


def _plain(name: str) -> str:
    return fold(name).replace("'", "")
